"""WebDataset shards: what is found in them, order, damage, and runs that resume at the exact next image."""

import io
import itertools
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

import datasets
import main_multi_gpu_pretrain
from errors import UserError
from pipeline import loading, shard_index, web_shards
from pipeline.samplers import TrainSampler
from pipeline.web_shards import WebShards, WindowOrder
from storage.cache import CACHE_VARIABLE
from tests.conftest import TINY
from tests.helpers import script_runs

pytestmark = pytest.mark.quick


def photo(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (18, 20, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


def write_tar(path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def sample(number: int, kind: str = "png") -> dict[str, bytes]:
    caption = f"photo number {number}".encode()
    parts = {kind: photo(number), "txt": caption, "cls": f"{number % 5},5".encode()}
    return {f"{number:05d}.{suffix}": data for suffix, data in parts.items()}


@pytest.fixture
def shards(tmp_path):
    """Return a data set of five shards of 4 to 8 samples."""
    number = itertools.count()
    for shard in range(5):
        members = {}
        for _ in range(4 + shard):
            members |= sample(next(number))
        write_tar(tmp_path / "data" / "train" / f"{shard:05d}.tar", members)
    return tmp_path / "data"


def test_images_captions_and_labels_belong_together(shards):
    source = WebShards(shards, "train", "none")
    assert len(source) == 30
    for index in range(30):
        assert source.captions[index] == f"photo number {index}"
        assert source.labels[index] == [index % 5, 5]
        assert source.read(index) == photo(index)
    assert source.count_classes() == 6
    assert "30 images with captions in 5 shards" in source.summary()


def test_the_second_opening_reads_no_tar(shards, monkeypatch):
    WebShards(shards, "train", "none")
    monkeypatch.setattr(shard_index, "scan_shard", lambda shard: pytest.fail("scanned again"))
    assert len(WebShards(shards, "train", "none")) == 30
    assert {path.name for path in (shards / "train" / ".shard-index").iterdir()} >= {"train.npz", "00000.tar.npz"}


@pytest.mark.parametrize("change", ["added", "replaced", "removed", "damaged index"])
def test_the_index_follows_the_shards(shards, change):
    WebShards(shards, "train", "none")
    folder = shards / "train"
    if change == "removed":
        (folder / "00004.tar").unlink()
    elif change == "damaged index":
        (folder / ".shard-index" / "train.npz").write_bytes(b"PK damaged")
    else:
        write_tar(folder / ("00005.tar" if change == "added" else "00004.tar.new"), sample(77))
        if change == "replaced":
            (folder / "00004.tar.new").replace(folder / "00004.tar")
    expected = {"added": 31, "replaced": 23, "removed": 22, "damaged index": 30}[change]
    assert len(WebShards(shards, "train", "none")) == expected


@pytest.mark.parametrize("how", ["in place", "by rename", "older"])
def test_a_shard_of_the_same_size_with_other_content_is_indexed_anew(tmp_path, how):
    def write(path, labels):
        members = {}
        for label in labels:
            members |= {f"{label}.png": photo(label), f"{label}.cls": str(label).encode(), f"{label}.txt": b"x"}
        write_tar(path, members)

    shard = tmp_path / "0.tar"
    write(shard, [1, 2])
    assert WebShards(tmp_path, "train", "none").labels[0] == [1]
    size = shard.stat().st_size
    write(shard if how == "in place" else tmp_path / "new", [8, 7])
    if how != "in place":
        if how == "older":
            os.utime(tmp_path / "new", (1, 1))
        (tmp_path / "new").replace(shard)
    assert shard.stat().st_size == size
    source = WebShards(tmp_path, "train", "none")
    assert [source.labels[index] for index in range(2)] == [[8], [7]]
    assert source.read(1) == photo(7)


def test_a_name_that_comes_twice_begins_a_new_sample(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("a.png", photo(1)), ("a.txt", b"old"), ("a.png", photo(2)), ("a.txt", b"new")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = WebShards(tmp_path, "train", "none")
    assert [(source.read(i), source.captions[i]) for i in range(2)] == [(photo(1), "old"), (photo(2), "new")]


@pytest.mark.parametrize("labels", [["3", "1"], ["3", "1,2"]])
def test_one_label_per_image_is_an_array(tmp_path, labels):
    members = {}
    for number, label in enumerate(labels):
        members |= {f"{number}.png": photo(number), f"{number}.cls": label.encode()}
    write_tar(tmp_path / "0.tar", members)
    if labels[1] == "1,2":
        with pytest.raises(UserError, match="image 1, 1.png: has 2 labels, and here each image must have one"):
            datasets.open_source("webdataset", str(tmp_path), "train", num_classes=5)
    else:
        source = datasets.open_source("webdataset", str(tmp_path), "train", num_classes=5)
        assert source.labels.tolist() == [3, 1]


def test_a_disk_that_cannot_be_written_has_its_index_in_the_cache(shards, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(shard_index.os, "access", lambda path, mode: False)
    monkeypatch.setattr(shard_index, "FOLDER", "no/such/place")
    assert len(WebShards(shards, "train", "none")) == 30
    assert list((tmp_path / "cache" / "shards").glob("*/train.npz"))
    assert not (shards / "train" / ".shard-index").exists()


def test_formats_of_a_sample(tmp_path):
    """.json beside img2dataset's keys, .txt before it, upper case, folders, dots in names, and what is not an image."""
    about = {"caption": "from json", "labels": [7, 8], "url": "http://x", "status": "success"}
    write_tar(
        tmp_path / "00000.tar",
        {
            "a/1.JPG": photo(1, "JPEG"),
            "a/1.json": json.dumps(about).encode(),
            "b/1.webp": photo(2, "WEBP"),
            "b/1.json": json.dumps(about).encode(),
            "b/1.txt": b"  from\n txt ",
            "b/1.cls": b"3",
            "2.jpeg": photo(3, "JPEG"),
            "3.txt": b"no image",
            "4.png": photo(4),
            "4.json": b"{damaged",
            "4.cls": b"one",
            "5.png": photo(5),
            "5.txt": b"",
            "notes.md": b"?",
        },
    )
    source = WebShards(tmp_path, "train", "none")
    assert [source.captions[i] for i in range(5)] == ["from json", "from txt", "", "", ""]
    assert [source.labels[i] for i in range(5)] == [[7, 8], [3], [], [], []]
    for needs in ("caption", "labels"):
        some = WebShards(tmp_path, "train", needs)
        assert (len(some), some.left_out) == (2, 3)
        assert some.read(1) == photo(2, "WEBP")
    notes = WebShards(tmp_path, "train", "labels").check(num_classes=9, channels=3)
    assert any("3 images without labels are left out" in note for note in notes)
    assert [note.partition(": ")[2] for note in notes[:-1]] == [
        "1 members (.json) are not understood (is not JSON (JSONDecodeError: Expecting property name enclos...): 4.json",  # noqa: E501
        "1 members (.cls) are not understood ('one' are not labels, which are integers separated by commas): 4.cls",
        "1 members have the suffix .md: notes.md",
        "1 members have no image: 3",
    ]
    with pytest.raises(UserError, match="label 8, and labels go from 0 to 7"):
        WebShards(tmp_path, "train", "labels").check(num_classes=8, channels=3)


def test_nothing_in_a_tar_can_reach_outside(tmp_path):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, kind, target in (("1.png", tarfile.SYMTYPE, "/etc/passwd"), ("2.png", tarfile.LNKTYPE, "../3.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        info = tarfile.TarInfo("../../outside.png")
        info.size = len(photo(1))
        tar.addfile(info, io.BytesIO(photo(1)))
    source = WebShards(tmp_path, "train", "none")
    assert len(source) == 1
    assert source.read(0) == photo(1)
    assert not list(tmp_path.parent.glob("outside*"))


DAMAGE = {
    "cut": lambda data: data[:6000],
    "cut in a header": lambda data: data[:5800],
    "cut between members": lambda data: data[: data.index(b"00006.png")],
    "overwritten header": lambda data: data.replace(b"00006.png", b"\xff" * 9, 1),
    "a hole": lambda data: data.replace(data[data.index(b"00006.png") :][:512], bytes(512), 1),
}


@pytest.mark.parametrize("kind", [*DAMAGE, "not a tar", "empty", "compressed"])
def test_damaged_shards(shards, kind):
    shard = shards / "train" / "00001.tar"
    if kind in DAMAGE:
        shard.write_bytes(DAMAGE[kind](shard.read_bytes()))
    elif kind == "compressed":
        with tarfile.open(shard, "w:gz") as tar:
            info = tarfile.TarInfo("1.png")
            tar.addfile(info)
    else:
        shard.write_bytes(b"" if kind == "empty" else b"x" * 4096)
    with pytest.raises(UserError, match=r"00001.tar: damaged.*BAD_IMAGES skip"):
        WebShards(shards, "train", "none")
    source = WebShards(shards, "train", "none", bad="skip")
    assert 25 <= len(source) < 30
    assert [source.read(index) for index in range(4)] == [photo(index) for index in range(4)]
    assert "damaged shards" in source.check(num_classes=None, channels=3)[0]


def test_no_shards_and_no_samples(tmp_path):
    with pytest.raises(UserError, match=r"holds no .tar files"):
        WebShards(tmp_path, "train", "none")
    with pytest.raises(UserError, match="no .tar files of the val split"):
        WebShards(tmp_path, "val", "none")
    write_tar(tmp_path / "1.tar", {"a.txt": b"text"})
    with pytest.raises(UserError, match="hold no images"):
        WebShards(tmp_path, "train", "none")
    write_tar(tmp_path / "1.tar", {"a.png": photo(1)})
    with pytest.raises(UserError, match="no images with captions"):
        WebShards(tmp_path, "train", "caption")


def test_a_shard_that_vanishes_is_skipped(shards):
    source = WebShards(shards, "train", "none")
    (shards / "train" / "00001.tar").unlink()
    for bad, expected in (("error", None), ("skip", 15)):
        reader = loading.Reader(source, [lambda image, rng: np.asarray(image)], 3, 0, bad, True, False, True)
        if expected is None:
            with pytest.raises(UserError, match=r"00001.tar: image"):
                reader.sample((0, 5))
        else:
            assert reader.sample((0, 5))[0].index == 9  # the first image of the next shard


# ---- order --------------------------------------------------------------------------------------


def test_an_epoch_has_every_image_once_and_mixes_windows(monkeypatch):
    monkeypatch.setattr(web_shards, "WINDOW_SHARDS", 3)
    counts = np.array([5, 0, 7, 2, 9, 4, 1])
    order = WindowOrder(counts, 0, 0)[np.arange(28)]
    assert sorted(order) == list(range(28))
    assert not np.array_equal(order, WindowOrder(counts, 0, 1)[np.arange(28)])
    assert not np.array_equal(order, WindowOrder(counts, 1, 0)[np.arange(28)])
    assert np.array_equal(order, [WindowOrder(counts, 0, 0)[np.array([place])][0] for place in range(28)])
    owners = np.repeat(np.arange(7), counts)[order]
    changes = (np.diff(owners) != 0).sum()
    assert changes > 12  # a window's shards alternate
    first = set(owners[:5])
    assert len(set(owners)) - len(first) > 0  # other windows follow


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_order(shards, ranks):
    source = WebShards(shards, "train", "none")
    dealt = []
    for update in range(30 // (2 * ranks)):
        for rank in range(ranks):
            sampler = TrainSampler(30, 2, rank=rank, world_size=ranks, seed=3, order=source.order)
            dealt += sampler.indices(update, rank)
    assert dealt == source.order(3, 0)[np.arange(len(dealt))].tolist()


def test_other_sets_keep_their_order():
    sampler = TrainSampler(50, 8, seed=7)
    sampler.set_position(3)
    keys = [key for batch in sampler for key in batch]
    wanted = np.random.default_rng([7, 3]).permutation(50)
    assert keys == [(3, index) for index in wanted.tolist()]
    repeated = TrainSampler(50, 8, seed=7, repeats=3)
    keys = [key for batch in repeated for key in batch]
    wanted = np.repeat(np.random.default_rng([7, 0]).permutation(50), 3)[:50]
    assert keys == [(0, index, place % 3) for place, index in enumerate(wanted.tolist())]


def test_pretraining_on_shards_stops_and_goes_on(shards, tmp_path):
    settings = [*TINY, "DATA.DATASET", "webdataset", "DATA.DATA_PATH", str(shards), "DATA.BATCH_SIZE", 4]
    settings += ["TRAIN.NUM_EPOCHS", 2, "SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9, "DATA.NUM_WORKERS", 2]
    run = script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "run", settings)
    script_runs.stop_after_step(run, tmp_path)
    flags = ("-resume", str(tmp_path / "again"))
    again = script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "again", settings, *flags)
    script_runs.assert_same(again, run)
