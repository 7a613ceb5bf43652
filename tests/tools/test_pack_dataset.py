"""Packed data sets, and JPEGs that are decoded fast."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from config import get_config
from errors import UserError
from methods import dispatch
from pipeline import augment, fast_jpeg, loading, transforms
from pipeline.samplers import EvalSampler, TrainSampler
from runtime import ROOT
from tools import pack_dataset


def open_packed(root, split="train"):
    return datasets.open_source("imagenet2012", str(root), split, num_classes=3)


def pack(src, dst, *flags):
    return pack_dataset.main([str(src), str(dst), "-size", "16", "-per_shard", "7", *flags])


@pytest.fixture(scope="module")
def packed(image_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("packed") / "set"
    assert pack(image_folder, root) == 0
    return root


@pytest.mark.quick
def test_packed_images_are_those_of_the_source(image_folder, packed):
    source = datasets.open_source("imagenet2012", str(image_folder), "train", num_classes=3)
    target = open_packed(packed)
    assert np.array_equal(target.labels, source.labels)
    names = [path.relative_to(packed).as_posix() for path in packed.rglob("*") if ".shard-index" not in path.parts]
    shards = [f"train/0000{n}.tar" for n in range(4)] + ["val/00000.tar", "val/00001.tar"]
    others = ["packed.json", "train", "val", "train/manifest.json", "val/manifest.json"]
    assert sorted(names) == sorted([*shards, *others])
    for index in range(24):
        image = source.image(index)
        scale = 16 / min(image.size)
        wanted = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        packed_image = target.image(index)
        assert packed_image.size == wanted.size
        assert np.abs(np.asarray(packed_image, float) - np.asarray(wanted, float)).mean() < 4  # JPEG once more
        assert Path(source.describe(index)).stem.replace(" ", "_") in target.describe(index)
    val, packed_val = (
        datasets.open_source("imagenet2012", str(r), "val", num_classes=3) for r in (image_folder, packed)
    )
    assert all(val.read(index) == packed_val.read(index) for index in range(12)), "to the byte"
    assert target.notes == packed_val.notes == []
    assert pack_dataset.main(["-verify", str(packed)]) == 0


@pytest.mark.quick
def test_class_names_come_along(image_folder, tmp_path):
    for split in ("train", "val"):
        shutil.copytree(image_folder / split, tmp_path / "photos" / split)
    assert pack(tmp_path / "photos", tmp_path / "set") == 0
    source = open_packed(tmp_path / "set")
    assert source.class_names == ["cat", "dog", "red fox"]
    assert source.summary() == "24 images of 3 classes, 8 to 8 each in 4 shards"
    assert source.check(num_classes=3, channels=3) == []
    other = datasets.open_source(
        "folder", str(tmp_path / "set"), "val", num_classes=3, class_names=["red fox", "cat", "dog"]
    )
    assert other.labels.tolist() == [1] * 4 + [2] * 4 + [0] * 4


@pytest.mark.quick
def test_packing_goes_on_where_it_was_interrupted(image_folder, packed, tmp_path, monkeypatch):
    encode, count = pack_dataset.encode, 0

    def interrupted(*arguments, **options):
        nonlocal count
        count += 1
        if count > 10:
            raise KeyboardInterrupt
        return encode(*arguments, **options)

    monkeypatch.setattr(pack_dataset, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(image_folder, tmp_path / "set")
    with pytest.raises(UserError, match="no images found"):
        open_packed(tmp_path / "set").check(num_classes=3, channels=3)
    first = (tmp_path / "set" / "train" / "00000.tar").stat().st_mtime_ns
    monkeypatch.setattr(pack_dataset, "encode", encode)
    with pytest.raises(UserError, match="was begun with other settings"):
        pack(image_folder, tmp_path / "set", "-quality", "90")
    pack(image_folder, tmp_path / "set")
    assert (tmp_path / "set" / "train" / "00000.tar").stat().st_mtime_ns == first
    for name in ("train/00000.tar", "train/00003.tar", "val/00001.tar"):
        assert (tmp_path / "set" / name).read_bytes() == (packed / name).read_bytes()
    with pytest.raises(UserError, match="is a packed data set already"):
        pack(image_folder, tmp_path / "set")


@pytest.mark.quick
def test_damage_is_noticed(packed, tmp_path, capsys):
    shutil.copytree(packed, tmp_path / "set")
    shard = tmp_path / "set" / "train" / "00001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert pack_dataset.main(["-verify", str(tmp_path / "set")]) == 1
    assert "00001.tar is damaged: its SHA-256 sum is another" in capsys.readouterr().out
    shard.write_bytes(content[:3000])
    assert pack_dataset.main(["-verify", str(tmp_path / "set")]) == 1
    (tmp_path / "set" / "train" / "manifest.json").unlink()
    assert pack_dataset.main(["-verify", str(tmp_path / "set")]) == 1
    with pytest.raises(UserError, match=r"00001.tar: damaged"):
        open_packed(tmp_path / "set")
    (tmp_path / "set" / "packed.json").write_text('{"version": 2, "class_names": 3}')
    with pytest.raises(UserError, match="its class_names are not a list of names"):
        open_packed(tmp_path / "set", "val")


@pytest.mark.quick
def test_a_pack_of_the_old_format_is_named_with_the_remedy(tmp_path):
    (tmp_path / "packed.json").write_text('{"version": 1, "splits": {}}')
    for call in (lambda: open_packed(tmp_path), lambda: pack_dataset.main(["-verify", str(tmp_path)])):
        with pytest.raises(UserError, match="older format.*python -m tools.pack_dataset SRC NEW"):
            call()


@pytest.mark.quick
def test_what_cannot_be_read_is_named_or_left_out(image_folder, tmp_path, capsys):
    shutil.copytree(image_folder, tmp_path / "photos")
    (tmp_path / "photos" / "train" / "dog" / "3 1.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="3 1.jpg: cannot be read as an image .*-skip_bad leaves it out"):
        pack(tmp_path / "photos", tmp_path / "set")
    assert pack(tmp_path / "photos", tmp_path / "other", "-skip_bad") == 0
    assert "left out 1: " in capsys.readouterr().out
    assert len(open_packed(tmp_path / "other")) == 23
    info = json.loads((tmp_path / "other" / "packed.json").read_text())
    assert "3 1.jpg" in info["left_out"]["train"][0]


@pytest.mark.quick
def test_a_lost_shard_is_named_like_any_bad_image(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "set")
    source = open_packed(tmp_path / "set")
    (tmp_path / "set" / "train" / "00000.tar").unlink()
    transform = dispatch.train_transform(get_config(ROOT / "configs/vit_micro_patch4_32_pretrain.yaml"))
    with pytest.raises(UserError, match="00000.tar: image 0: cannot be read as an image"):
        next(iter(loading.Loader(source, transform, EvalSampler(24, 1))))


@pytest.mark.quick
def test_a_folder_without_classes_is_packed_and_no_image_is_lost(image_folder, tmp_path):
    flat = tmp_path / "flat" / "train"
    flat.mkdir(parents=True)
    for index, path in enumerate((image_folder / "train" / "dog").iterdir()):
        shutil.copy(path, flat / f"{index}.jpg")
    assert pack(tmp_path / "flat", tmp_path / "set", "-dataset", "folder") == 0
    source = datasets.open_source("folder", str(tmp_path / "set"), "train", num_classes=1, needs="none")
    assert len(source) == 8
    assert not source.has_labels
    (flat / "a class").mkdir()
    (flat / "0.jpg").rename(flat / "a class" / "0.jpg")
    with pytest.raises(UserError, match="7 images are in no class folder"):
        pack(tmp_path / "flat", tmp_path / "other", "-dataset", "folder")


def test_a_recipe_trains_on_a_packed_set(packed, tmp_path, tiny_yaml):
    import main_multi_gpu_pretrain as main

    flags = ["-cfg", tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 1), "-dataset", "imagenet2012", "-output", str(tmp_path)]
    results = main.main([*flags, "-data_path", str(packed), "-opts", "DATA.NUM_WORKERS", "2"])
    assert np.isfinite(results["loss"])


# ---- fast decoding


@pytest.fixture
def photo():
    """Return a JPEG with smooth colours and edges, 480x400."""
    rows, columns = np.mgrid[0:400, 0:480] / 60.0
    pixels = np.stack([np.sin(rows * 2 + columns), np.cos(columns * 3), np.sin(rows * columns / 3)], axis=-1)
    pixels[100:200, 150:300] *= -1
    buffer = io.BytesIO()
    Image.fromarray((128 + 100 * pixels).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "box", [(0, 0, 480, 400), (30, 20, 330, 340), (100, 100, 220, 200), (0, 0, 480, 3), (479, 399, 480, 400)]
)
@pytest.mark.parametrize("size_hw", [(224, 224), (96, 64), (33, 180)])
def test_fast_decoding_is_close_to_pillow_for_the_same_box(photo, box, size_hw, channels):
    pytest.importorskip("simplejpeg")
    pytest.importorskip("cv2")
    jpeg = fast_jpeg.open_jpeg(photo, channels)
    assert jpeg.size == (480, 400)
    fast = jpeg.crop_and_resize(box, size_hw)
    assert fast.shape == (*size_hw, channels)
    exact = Image.open(io.BytesIO(photo)).convert("L" if channels == 1 else "RGB").crop(box)
    exact = augment.as_pixels(exact.resize(size_hw[::-1], Image.Resampling.BICUBIC))
    assert np.abs(fast.astype(float) - exact).mean() <= 3.0


def test_a_crop_does_not_depend_on_the_crops_before_it(photo):
    """One that needs the whole photo, and one for which a half of it will do; the first is decoded once."""
    pytest.importorskip("simplejpeg")
    pytest.importorskip("cv2")
    small, large = ((10, 10, 60, 60), (64, 64)), ((0, 0, 480, 400), (64, 64))
    alone = [fast_jpeg.open_jpeg(photo, 3).crop_and_resize(*crop) for crop in (small, large)]
    jpeg = fast_jpeg.open_jpeg(photo, 3)
    together = [jpeg.crop_and_resize(*crop) for crop in (small, large, small)]
    assert all(np.array_equal(one, other) for one, other in zip(together, [*alone, alone[0]], strict=True))


def test_only_plain_jpegs_are_decoded_fast(photo):
    image = Image.open(io.BytesIO(photo))
    rotated = Image.Exif()
    rotated[0x0112] = 6

    def encoded(form, **options):
        buffer = io.BytesIO()
        (image.convert("CMYK") if options.pop("cmyk", False) else image).save(buffer, form, **options)
        return buffer.getvalue()

    assert fast_jpeg.open_jpeg(encoded("PNG"), 3) is None
    assert fast_jpeg.open_jpeg(encoded("JPEG", exif=rotated), 3) is None
    assert fast_jpeg.open_jpeg(encoded("JPEG", cmyk=True), 3) is None
    assert fast_jpeg.open_jpeg(photo, 4) is None
    assert fast_jpeg.open_jpeg(photo, 3) is not None


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "linearprobe"])
def test_training_takes_fast_decoding_and_evaluation_does_not(image_folder, mode):
    pytest.importorskip("simplejpeg")
    pytest.importorskip("cv2")
    config = get_config(ROOT / f"configs/vit_micro_patch4_32_{mode}.yaml")
    source = datasets.open_source("imagenet2012", str(image_folder), "train", num_classes=3)

    def images(transform, sampler, **options):
        return np.concatenate([batch.images.numpy() for batch in loading.Loader(source, transform, sampler, **options)])

    sampler = TrainSampler(24, 8, seed=3)
    transform = dispatch.train_transform(config)
    exact, fast = (images(transform, sampler, seed=3, fast_decode=fast) for fast in (False, True))
    assert not np.array_equal(exact, fast)
    if mode != "finetune":  # RandAugment may amplify a difference
        assert np.abs(exact - fast).mean() * 0.225 * 255 < 6  # same crops and flips; the photos are noise
    exact, fast = (images(transforms.eval_transform(config), EvalSampler(24, 8), fast_decode=f) for f in (False, True))
    assert np.array_equal(exact, fast)


@pytest.mark.quick
def test_damaged_jpegs_are_errors_of_the_exact_decoder(photo, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x.jpg").write_bytes(photo[: len(photo) // 2])
    source = datasets.open_source("folder", str(tmp_path), "train", num_classes=1, needs="none")
    transform = dispatch.train_transform(get_config(ROOT / "configs/vit_micro_patch4_32_pretrain.yaml"))
    with pytest.raises(UserError, match="x.jpg: cannot be read as an image|pip install -r requirements/fast.txt"):
        next(iter(loading.Loader(source, transform, TrainSampler(1, 1), fast_decode=True)))


@pytest.mark.quick
def test_evaluation_is_pillow_bit_identical(image_folder):
    config = get_config(ROOT / "configs/vit_base_patch16_224_finetune.yaml")
    source = datasets.open_source("imagenet2012", str(image_folder), "val", num_classes=3)
    image = source.image(0).convert("RGB")
    width, height = image.size
    scale = 256 / min(width, height)
    size = (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
    assert scale > 1
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    wanted = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(transforms.eval_transform(config).views[0](image, None), wanted)


@pytest.mark.quick
@pytest.mark.parametrize(
    "text",
    ["[]", '{"version": true}', '{"version": 2, "class_names": [1]}', '{"version": 2, "class_names": "cat"}', "{"],
)
def test_a_packed_json_of_other_types_is_refused(tmp_path, image_folder, text):
    pack_dataset.main([str(image_folder), str(tmp_path / "packed"), "-size", "0"])
    (tmp_path / "packed" / "packed.json").write_text(text)
    with pytest.raises(UserError, match="packed.json: .*pack the data set again"):
        datasets.open_source("folder", str(tmp_path / "packed"), "val", num_classes=3)


@pytest.mark.quick
@pytest.mark.parametrize("val", ["valid", "validation", "test"])
def test_val_splits_of_other_names_are_packed(image_folder, tmp_path, val):
    shutil.copytree(image_folder / "train", tmp_path / "src" / "training")
    shutil.copytree(image_folder / "val", tmp_path / "src" / val)
    assert pack(tmp_path / "src", tmp_path / "set", "-dataset", "folder") == 0
    assert [len(open_packed(tmp_path / "set", split)) for split in ("train", "val")] == [24, 12]
    Image.new("RGB", (4, 4)).save(tmp_path / "src" / "training" / "stray.png")
    with pytest.raises(UserError, match="1 images are in no class folder"):
        pack(tmp_path / "src", tmp_path / "again", "-dataset", "folder")


@pytest.mark.quick
def test_classes_without_splits_are_packed_with_a_share_held_out(image_folder, tmp_path, capsys):
    shutil.copytree(image_folder / "train", tmp_path / "src")
    assert pack(tmp_path / "src", tmp_path / "set", "-dataset", "folder", "-val_fraction", "0.25") == 0
    sets = [open_packed(tmp_path / "set", split) for split in ("train", "val")]
    assert [np.bincount(source.labels).tolist() for source in sets] == [[6, 6, 6], [2, 2, 2]]
    assert pack(tmp_path / "src", tmp_path / "plain", "-dataset", "folder") == 0
    assert "packed without labels" in capsys.readouterr().out
