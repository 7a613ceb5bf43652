"""Batches of decoded and augmented images, and the images that cannot be decoded."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import datasets
from config import get_config
from errors import UserError
from methods import dispatch
from pipeline import augment, decoding, loading, sources, transforms
from pipeline.labels import stack_labels
from pipeline.samplers import EvalSampler, TrainSampler
from runtime import ROOT
from tools import check_dataset

pytestmark = pytest.mark.quick


def open_folder(root, name="imagenet2012", split="train", **options):
    return datasets.open_source(name, str(root), split, num_classes=3, **options)


def plain(image, rng):
    pixels = augment.as_pixels(augment.resize_and_center_crop(image, (8, 8), 1.0))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32) / 255


def noisy(image, rng):
    return plain(image, rng) + rng.random(dtype=np.float32)


def load(source, transform, epoch=0, workers=0):
    loader = loading.Loader(source, transform, TrainSampler(len(source), 5, seed=1), seed=1, num_workers=workers)
    return [[batch.images.numpy(), batch.labels.numpy()] for batch in loader.epoch(epoch)]


def test_randomness_does_not_depend_on_workers(image_folder):
    source = open_folder(image_folder)
    for epoch in (0, 1):
        alone, helped = load(source, noisy, epoch), load(source, noisy, epoch, workers=2)
        assert all(
            np.array_equal(a, b)
            for left, right in zip(alone, helped, strict=True)
            for a, b in zip(left, right, strict=True)
        )
    assert not np.array_equal(
        np.sort(load(source, noisy, 0)[0][0].ravel()), np.sort(load(source, noisy, 1)[0][0].ravel())
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(image_folder, tmp_path, workers):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    (tmp_path / "train" / "cat" / "1 0.jpg").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="1 0.jpg: cannot be read as an image"):
        load(open_folder(tmp_path), plain, workers=workers)


def test_grey_and_palette_images_become_rgb(tmp_path):
    for name, mode in (("a", "L"), ("b", "P"), ("c", "RGBA")):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new(mode, (9, 9)).save(tmp_path / "train" / name / "x.png")
    assert load(open_folder(tmp_path), plain)[0][0].shape == (3, 3, 8, 8)


def test_sixteen_bit_images_are_scaled_and_unknown_ranges_refused(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    values = np.array([[0, 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "train" / "a" / "x.png")
    source = open_folder(tmp_path)
    assert np.asarray(sources.read_image(source, 0, 1)).tolist() == [[0, 1, 255]]
    assert np.asarray(sources.read_image(source, 0, 3))[0, 1].tolist() == [1, 1, 1]
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "train" / "a" / "x.tif")
    (tmp_path / "train" / "a" / "x.png").unlink()
    with pytest.raises(ValueError, match="x.tif: cannot be read .*mode F, whose range is unknown"):
        load(open_folder(tmp_path), plain)


def test_batches_are_not_overwritten_by_the_next_ones(image_folder):
    loader = loading.Loader(open_folder(image_folder), noisy, TrainSampler(24, 5, seed=1), num_workers=1)
    kept = list(loader.epoch(0))
    assert all(np.array_equal(a.images.numpy(), b.images.numpy()) for a, b in zip(kept, loader.epoch(0), strict=True))
    assert not np.array_equal(kept[0].images.numpy(), kept[-2].images.numpy())


@pytest.mark.parametrize("workers", [0, 1])
def test_formats_are_decoded_as_users_expect(tmp_path, workers):
    """One picture, red left and blue right, in many formats; the labels tell where it must come out otherwise."""
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:, :12, 0], pixels[:, 12:, 2] = 255, 255
    image = Image.fromarray(pixels)
    rotated = Image.Exif()
    rotated[0x0112] = 6  # stored on its side: turn it clockwise by 90 degrees to see it
    damaged = rotated.tobytes()[:12] + b"\xff\xff\xff\xff"
    image.save(folder / "plain.jpg", quality=95)
    image.save(folder / "really_a_png.jpg", format="PNG")
    image.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "exif.jpg", quality=95, exif=rotated)
    image.save(folder / "exif_damaged.jpg", quality=95, exif=damaged)
    image.convert("RGBA").save(folder / "alpha.png")
    image.quantize(4).save(folder / "palette.png", transparency=b"\x00\x80\xff\xff")
    image.save(folder / "animated.gif", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)])
    image.save(folder / "lossless.webp", lossless=True)
    source = open_folder(tmp_path)
    resize = lambda image, rng: np.asarray(image.resize((6, 4), Image.Resampling.BOX), np.float32)
    (batch,) = loading.Loader(source, resize, EvalSampler(9, 9), num_workers=workers)
    for index, array in enumerate(batch.images.numpy()):
        assert np.abs(array - resize(image, None)).max() < 45, source.describe(index)  # CMYK's and JPEG's colours


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "linearprobe"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_images_of_one_pixel_become_whole_inputs(mode, size):
    config = get_config(ROOT / f"configs/vit_base_patch16_224_{mode}.yaml")
    for transform in (dispatch.train_transform(config), transforms.eval_transform(config)):
        assert transform(Image.new("RGB", size, (9, 9, 9)), np.random.default_rng(0)).shape == (3, 224, 224)


# ---- damaged files


def damaged_copy(content: bytes, number: int) -> bytes:
    """Damage a JPEG in one of several ways."""
    rng = np.random.default_rng(number)
    kind = number % 5
    if kind == 0:
        return content[: rng.integers(0, len(content))]
    if kind == 1:
        return b""
    if kind == 2:
        return b"this is not an image"
    if kind == 3:
        return rng.bytes(len(content))
    flipped = bytearray(content)
    for position in rng.integers(0, len(content), 20):
        flipped[position] ^= 1 << rng.integers(8)
    return bytes(flipped)


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory):
    """Return 200 damaged files among 40 good ones, all of one class."""
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "train" / "a").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    for number in range(240):
        content = buffer.getvalue() if number % 6 == 5 else damaged_copy(buffer.getvalue(), number)
        (folder / "train" / "a" / f"{number:03}.jpg").write_bytes(content)
    return folder


def can_be_read(source, index) -> bool:
    try:
        sources.read_image(source, index, 3)
        return True
    except Exception:
        return False


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_images_follow_the_policy(damaged_folder, workers):
    source = datasets.open_source("folder", str(damaged_folder), "train", num_classes=1)
    readable = [can_be_read(source, index) for index in range(240)]
    assert 40 <= sum(readable) < 150  # flipped bits may leave an image that still decodes
    notes = []
    options = {"num_workers": workers, "bad_images": "skip", "note_bad": notes.append}
    resize = lambda image, rng: np.asarray(image.resize((8, 8)), np.float32)
    train = loading.Loader(source, resize, TrainSampler(240, 16), **options)
    batches = list(train.epoch(0))
    assert [len(batch) for batch in batches] == [16] * 15  # a bad image is replaced by the next good one
    bad = {source.describe(index) for index in range(240) if not readable[index]}
    assert {note.partition(": cannot be read")[0] for note in notes} == bad
    assert len(notes) == len(bad)  # each once
    evaluation = loading.Loader(source, resize, EvalSampler(240, 16), **options)
    assert sum(len(batch) for batch in evaluation) == sum(readable)  # left out
    with pytest.raises(UserError, match="cannot be read as an image .*-opts DATA.BAD_IMAGES skip continues without it"):
        list(loading.Loader(source, resize, EvalSampler(240, 16), num_workers=workers))


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    Image.new("1", (15_000, 12_000)).save(tmp_path / "train" / "bomb.png")  # 180 million pixels in some kilobytes
    Image.new("1", (12_000, 9_000)).save(tmp_path / "train" / "phone.png")
    source = datasets.open_source("folder", str(tmp_path), "train", num_classes=1, needs="none")
    assert sources.read_image(source, 1, 1).size == (12_000, 9_000)
    with pytest.raises(ValueError, match=r"claims more than 178,956,970 pixels.*MAX_PIXELS allows more"):
        sources.read_image(source, 0, 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # is put back behind the test
    decoding.allow_pixels(180_000_000)
    assert sources.read_image(source, 0, 1).size == (15_000, 12_000)


def test_check_dataset_reports(image_folder, damaged_folder, tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["-dataset", "imagenet2012", "-data_path", str(image_folder), "-full", "-json", str(report)]
    assert check_dataset.main(arguments) == 0
    assert "train: images 24, classes 3, smallest_class 8, largest_class 8" in capsys.readouterr().out
    assert json.loads(report.read_text())["ok"] is True
    assert check_dataset.main([*arguments, "-num_classes", "2"]) == 1
    assert "labels are not from 0 to 1" in capsys.readouterr().out
    # A folder without a val split, with damaged images that only -full finds.
    arguments = ["-dataset", "folder", "-data_path", str(damaged_folder), "-json", str(report)]
    assert check_dataset.main([*arguments, "-full"]) == 1
    values = json.loads(report.read_text())
    assert len(values["train"]["undecodable"]) > 90
    assert "no such directory" in values["val"]["problems"][0]
    with pytest.raises(UserError, match="-dataset mnist: must be one of"):
        check_dataset.main(["-dataset", "mnist"])


def test_repeats_are_the_same_images_augmented_anew_and_decoded_once(image_folder, monkeypatch):
    source = open_folder(image_folder)
    sampler = TrainSampler(24, 6, seed=1, repeats=3)
    keys = [key for batch in sampler for key in batch]
    assert len(keys) == len(set(keys)) == 24
    assert [key[2] for key in keys] == [0, 1, 2] * 8
    assert len({key[1] for key in keys}) == 8
    reads = []
    monkeypatch.setattr(loading, "read_image", lambda s, i, *c, f=sources.read_image: reads.append(i) or f(s, i, *c))
    images = np.concatenate([b.images.numpy() for b in loading.Loader(source, noisy, sampler, seed=1).epoch(0)])
    assert len(reads) <= 8 + 1  # and one to learn the shape
    assert len(np.unique(images.reshape(24, -1), axis=0)) == 24
    half = [TrainSampler(24, 3, rank=rank, world_size=2, seed=1, repeats=3) for rank in (0, 1)]
    both = [sorted(a + b) for a, b in zip(*half, strict=True)]
    assert both == [sorted(batch) for batch in sampler]  # as many ranks as one likes
    assert sampler.indices(0, 0) == [key[1] for key in keys[:6]]


def test_a_rank_without_a_share_of_the_images_evaluates_none(image_folder):
    assert list(loading.Loader(open_folder(image_folder), plain, EvalSampler(2, 2, rank=3, world_size=4))) == []


@pytest.mark.parametrize("fast", [False, True])
def test_photos_are_read_as_stored_where_upright_is_not_wanted(tmp_path, fast):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    note = Image.Exif()
    note[0x0112] = 6
    Image.new("RGB", (24, 16)).save(folder / "photo.jpg", exif=note)
    shape = transforms.Transform((lambda image, rng: np.asarray([[image.size]], np.uint8),), [0.0] * 2, [1.0] * 2, True)
    for upright, expected in ((True, [16, 24]), (False, [24, 16])):
        loader = loading.Loader(
            open_folder(tmp_path), shape, EvalSampler(1, 1), upright=upright, fast_decode=fast, num_workers=0
        )
        assert loader._reader.sample((0, 0))[0].views[0].ravel().tolist() == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_augmented_apart_and_named_by_their_index(image_folder, workers):
    """Two views of other sizes; the first one is what a loader with one view gives."""
    source = open_folder(image_folder)
    small = lambda image, rng: augment.as_pixels(augment.random_resized_crop(image, (8, 8), rng, (0.2, 1.0)))
    large = lambda image, rng: augment.as_pixels(augment.random_resized_crop(image, (12, 10), rng, (0.2, 1.0)))
    both = transforms.Transform((small, small, large), [0.5] * 3, [0.5] * 3)
    one = transforms.Transform((small,), [0.5] * 3, [0.5] * 3)
    options = {"seed": 1, "num_workers": workers}
    batches = list(loading.Loader(source, both, TrainSampler(24, 5, seed=1), **options).epoch(1))
    alone = list(loading.Loader(source, one, TrainSampler(24, 5, seed=1), **options).epoch(1))
    again = list(loading.Loader(source, both, TrainSampler(24, 5, seed=1), **options).epoch(1))
    for batch, single, repeated in zip(batches, alone, again, strict=True):
        assert [list(view.shape[1:]) for view in batch.views] == [[3, 8, 8], [3, 8, 8], [3, 12, 10]]
        assert len(batch) == len(batch.indices) == len(batch.labels)
        assert np.array_equal(batch.images.numpy(), single.images.numpy())
        assert not np.array_equal(batch.views[0].numpy(), batch.views[1].numpy())
        assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(batch.views, repeated.views, strict=True))
        assert batch.labels.tolist() == source.labels[batch.host_indices].tolist()
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == list(range(24))


def test_the_index_of_an_image_that_replaces_another_is_its_own(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    source = open_folder(tmp_path)
    source.paths[3].write_bytes(b"not an image")
    loader = loading.Loader(source, plain, TrainSampler(24, 24, seed=1), bad_images="skip")
    (batch,) = loader.epoch(0)
    assert sorted(batch.indices.tolist()) == sorted([*range(3), 4, *range(4, 24)])


def test_several_labels_and_captions_are_handed_on(image_folder):
    source = open_folder(image_folder)
    source.labels = [[index] * (index % 3) for index in range(24)]
    source.captions = [f"picture {index}" for index in range(24)]
    (batch,) = loading.Loader(source, plain, EvalSampler(24, 24))
    assert batch.captions is None, "they are read for a method that needs them"
    (batch,) = loading.Loader(source, plain, EvalSampler(24, 24), with_captions=True)
    assert batch.captions[5] == "picture 5"
    assert batch.labels[:4].tolist() == [[-1, -1], [1, -1], [2, 2], [-1, -1]]
    assert stack_labels([[], []]).tolist() == [[-1], [-1]]
