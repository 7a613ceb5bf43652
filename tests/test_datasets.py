import io
import json
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

import augment
import datasets
import loading
from errors import UserError
from samplers import EvalSampler, TrainSampler
from tools import check_dataset

pytestmark = pytest.mark.quick


def open_folder(root, name="imagenet2012", split="train", **options):
    return datasets.open_source(name, str(root), split, num_classes=3, **options)


def plain(image, rng):
    return augment.to_array(augment.resize_and_center_crop(image, (8, 8), 1.0), [0.0] * 3, [1.0] * 3)


def noisy(image, rng):
    return plain(image, rng) + rng.random(dtype=np.float32)


# ---- sources


def test_list_files_with_spaces(image_folder):
    source = open_folder(image_folder)
    assert len(source) == 24
    assert source.paths[-1].name == "7 2.jpg"
    assert np.bincount(source.labels).tolist() == [8, 8, 8]
    assert datasets.check_source(source, num_classes=3, channels=3) == []


def test_folders_stand_in_for_absent_lists(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    shutil.copytree(image_folder / "val" / "dog", tmp_path / "val" / "dog")
    source = open_folder(tmp_path)
    assert source.class_names == ["cat", "dog", "red fox"]
    assert np.bincount(source.labels).tolist() == [8, 8, 8]
    assert set(open_folder(tmp_path, split="val").labels) == {1}, "labels of val are those of train"
    flat = open_folder(tmp_path / "train" / "dog", name="folder", needs_labels=False)
    assert len(flat) == 8


def test_linked_class_folders_count(image_folder, tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).symlink_to(image_folder / "train" / name)
    assert len(open_folder(tmp_path, name="folder")) == 16
    assert len(open_folder(tmp_path, name="folder", needs_labels=False)) == 16


def write_cifar(path, name, as_archive):
    rng = np.random.default_rng(0)
    archive, folder, files, test_file, key = datasets._CIFAR[name]
    (path / folder).mkdir()
    for file in [*files, test_file]:
        data = {b"data": rng.integers(0, 256, (4, 3072)).astype(np.uint8), key: [0, 1, 2, 1], b"filenames": [b"a"] * 4}
        (path / folder / file).write_bytes(pickle.dumps(data, protocol=2))
    if as_archive:
        with tarfile.open(path / archive, "w:gz") as tar:
            tar.add(path / folder, folder)
        shutil.rmtree(path / folder)


@pytest.mark.parametrize("as_archive", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_archives(tmp_path, name, as_archive):
    write_cifar(tmp_path, name, as_archive)
    train, val = (datasets.open_source(name, str(tmp_path), split, num_classes=3) for split in ("train", "val"))
    assert len(train) == (20 if name == "cifar10" else 4)
    assert len(val) == 4
    data = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    assert np.asarray(train.image(1))[3, 5].tolist() == [data[1, 3 * 32 + 5], data[1, 1024 + 101], data[1, 2048 + 101]]


def test_hostile_cifar_archive_runs_nothing(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for file in [f"data_batch_{i}" for i in range(1, 6)]:
        (tmp_path / "cifar-10-batches-py" / file).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ValueError, match="asks for os.system"):
        datasets.open_source("cifar10", str(tmp_path), "train", num_classes=10)


def test_digits_are_split_without_overlap():
    train, val = (datasets.open_source("digits", "", split, num_classes=10) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert train.images.max() == 255
    assert datasets.check_source(val, num_classes=10, channels=1) == []


def test_synthetic_images_are_the_same_every_time():
    first, second = (
        datasets.open_source("synthetic", "", "train", num_classes=5, synthetic_hw=(8, 12)) for _ in range(2)
    )
    assert np.array_equal(first.images, second.images)
    assert first.images.shape == (1024, 8, 12, 3)


# ---- checks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/cat/none.jpg 0\n", "1 files are missing: .*none.jpg"),
        ("train/dog/0 1.jpg 3\n", r"1 labels are not from 0 to 2 \(MODEL.NUM_CLASSES=3\): .*0 1.jpg has 3"),
        ("train/dog/0 1.jpg -1\n", "1 labels are not from 0 to 2"),
        ("train/dog/0.jpg\n", "line 25: expected 'path label'"),
        ("train/dog/0 1.jpg --5\n", "line 25: expected 'path label'"),
        ("train/dog/0 1.jpg 12345678901234567890\n", "line 25: expected 'path label'"),
        ("train/dog/0 1.jpg 1.5\n", "line 25: expected 'path label'"),
    ],
)
def test_bad_lines_are_named(image_folder, tmp_path, line, message):
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(image_folder / split)
    (tmp_path / "train_list.txt").write_text((image_folder / "train_list.txt").read_text() + line)
    with pytest.raises(ValueError, match=message):
        datasets.check_source(open_folder(tmp_path), num_classes=3, channels=3)


def test_empty_classes_and_missing_places_are_named(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="1 classes have no images: empty"):
        datasets.check_source(open_folder(tmp_path), num_classes=4, channels=3)
    with pytest.raises(ValueError, match="DATA_PATH=.*no such directory; set it with -data_path"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected val/<class>/\*.jpg"):
        open_folder(tmp_path, split="val")
    with pytest.raises(ValueError, match=r"holds neither cifar-10-python.tar.gz"):
        open_folder(tmp_path, name="cifar10")
    with pytest.raises(ValueError, match="DATA.IMAGE_CHANNELS=5"):
        datasets.check_source(open_folder(image_folder), num_classes=3, channels=5)
    warnings = datasets.check_source(open_folder(image_folder), num_classes=9, channels=3)
    assert "6 of MODEL.NUM_CLASSES=9 classes have no images: 3, 4, 5, 6, 7 and 1 more" in warnings[0]


# ---- samplers


@pytest.mark.parametrize(
    ("num_images", "batch", "accum", "world"),
    [(21, 4, 1, 1), (21, 2, 2, 2), (23, 1, 2, 3), (16, 4, 2, 2), (17, 4, 2, 2)],
)
def test_every_image_is_dealt_once(num_images, batch, accum, world):
    samplers = [TrainSampler(num_images, batch, accum, rank=rank, world_size=world) for rank in range(world)]
    indices = []
    for sampler in samplers:
        sampler.set_position(3)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        sizes = [size for update in range(sampler.updates_per_epoch) for size in sampler.micro_sizes(update)]
        assert [len(batch) for batch in batches] == sizes
        assert {epoch for batch in batches for epoch, _ in batch} == {3}
        indices += [index for batch in batches for _, index in batch]
    rest = num_images % (batch * accum * world)
    dropped = rest if rest < world else 0
    assert sorted(indices) == sorted(set(indices))
    assert len(indices) == num_images - dropped


def test_an_update_has_the_same_images_however_they_are_dealt():
    def updates(batch, accum, world):
        dealt = []
        samplers = [TrainSampler(21, batch, accum, rank=rank, world_size=world, seed=5) for rank in range(world)]
        iterators = [iter(sampler) for sampler in samplers]
        for update in range(samplers[0].updates_per_epoch):
            images = set()
            for sampler, iterator in zip(samplers, iterators, strict=True):
                for _ in sampler.micro_sizes(update):
                    images |= {index for _, index in next(iterator)}
            dealt.append(images)
        return dealt

    assert updates(8, 1, 1) == updates(2, 4, 1) == updates(1, 4, 2) == updates(2, 1, 4)
    assert [len(images) for images in updates(8, 1, 1)] == [8, 8, 5]


def test_order_depends_on_seed_and_epoch_and_can_be_entered_anywhere():
    def order(seed, epoch, first_update=0):
        sampler = TrainSampler(20, 4, seed=seed)
        sampler.set_position(epoch, first_update)
        return [[index for _, index in batch] for batch in sampler]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1, 3) == order(0, 1)[3:]


def test_too_few_images():
    assert TrainSampler(5, 8).updates_per_epoch == 1
    with pytest.raises(ValueError, match="5 images are too few: an update takes 8"):
        TrainSampler(5, 8, drop_last=True)
    with pytest.raises(ValueError, match="too few"):
        TrainSampler(1, 1, world_size=2)
    assert TrainSampler(21, 4, drop_last=True).updates_per_epoch == 5


def test_evaluation_pads_nothing():
    dealt = [[index for batch in EvalSampler(11, 3, rank, 4) for _, index in batch] for rank in range(4)]
    assert sorted(index for indices in dealt for index in indices) == list(range(11))


# ---- loading


def load(source, transform, epoch=0, workers=0):
    loader = loading.Loader(source, transform, TrainSampler(len(source), 5, seed=1), seed=1, num_workers=workers)
    return [[part.numpy() for part in batch] for batch in loader.epoch(epoch)]


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
    assert np.asarray(loading.read_image(source, 0, 1)).tolist() == [[0, 1, 255]]
    assert np.asarray(loading.read_image(source, 0, 3))[0, 1].tolist() == [1, 1, 1]
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "train" / "a" / "x.tif")
    (tmp_path / "train" / "a" / "x.png").unlink()
    with pytest.raises(ValueError, match="x.tif: cannot be read .*mode F, whose range is unknown"):
        load(open_folder(tmp_path), plain)


def test_loaded_archive_is_only_read_from(tmp_path):
    write_cifar(tmp_path, "cifar10", as_archive=True)
    data = (tmp_path / "cifar-10-python.tar.gz").read_bytes()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="not the published python archive"):
        datasets.open_source("cifar10", str(tmp_path), "train", num_classes=3)
    with pytest.raises(ValueError, match="damaged or not a pickle"):
        datasets._read_cifar_batch(io.BytesIO(b"\x80\x02garbage").getvalue(), "x")


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
        return b"this is no image"
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
        loading.read_image(source, index, 3)
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
    assert [batch[0].shape[0] for batch in batches] == [16] * 15  # a bad image is replaced by the next good one
    bad = {source.describe(index) for index in range(240) if not readable[index]}
    assert {note.partition(": cannot be read")[0] for note in notes} == bad
    assert len(notes) == len(bad)  # each once
    evaluation = loading.Loader(source, resize, EvalSampler(240, 16), **options)
    assert sum(batch[0].shape[0] for batch in evaluation) == sum(readable)  # left out
    with pytest.raises(UserError, match="cannot be read as an image .*-opts DATA.BAD_IMAGES skip goes on without it"):
        list(loading.Loader(source, resize, EvalSampler(240, 16), num_workers=workers))


def test_decompression_bombs_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("1", (10_000, 10_000)).save(tmp_path / "train" / "bomb.png")  # 100 million pixels in some kilobytes
    source = datasets.open_source("folder", str(tmp_path), "train", num_classes=1, needs_labels=False)
    with pytest.warns(Warning, match="bomb"), pytest.raises(ValueError, match="10000x10000 pixels, which looks like a"):
        loading.read_image(source, 0, 3)


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


@pytest.mark.parametrize("path", ["../a.jpg", "train/../../a.jpg", "/etc/passwd"])
def test_lists_do_not_point_outside(tmp_path, path):
    (tmp_path / "train_list.txt").write_text(f"{path} 0\n")
    with pytest.raises(UserError, match="line 1: .* is outside; -opts DATA.LIST_OUTSIDE True allows it"):
        open_folder(tmp_path)
    assert len(open_folder(tmp_path, list_outside=True)) == 1
