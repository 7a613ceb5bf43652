"""What is there and is not used is counted and named, in folders, lists and shards."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

import datasets
from errors import UserError
from pipeline.shard_index import shard_split
from pipeline.web_shards import WebShards
from pipeline.wrapped_sources import Subset
from tools import channel_statistics, check_dataset, curate

pytestmark = pytest.mark.quick


def photo(value: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path):
    """Return a data set of two classes of two photos, in both splits."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                (tmp_path / split / name / f"{number}.png").write_bytes(photo(number))
    return tmp_path


def notes_of(root, needs="label", split="train") -> list[str]:
    source = datasets.open_source("folder", str(root), split, num_classes=2, needs=needs)
    return source.check(num_classes=2 if needs == "label" else None, channels=3)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"])
def test_folders_of_systems_are_no_classes(folder, name):
    (folder / "train" / name).mkdir()
    (folder / "train" / name / "0.png").write_bytes(photo())
    source = datasets.open_source("folder", str(folder), "train", num_classes=2)
    assert source.class_names == ["cat", "dog"]
    assert len(source) == 4
    for needs in ("label", "none"):
        (note,) = notes_of(folder, needs)
        assert f"1 files or folders are hidden, or of an operating system: {name}" in note


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", "Thumbs.db"])
def test_files_of_systems_are_no_images(folder, name):
    (folder / "train" / "cat" / name).write_bytes(b"no picture")
    (note,) = notes_of(folder)
    assert f"cat/{name}" in note
    assert len(datasets.open_source("folder", str(folder), "train", num_classes=2)) == 4


def test_other_suffixes_are_counted(folder):
    for name in ("a.jfif", "b.JFIF", "c.avif", "README"):
        (folder / "train" / "dog" / name).write_bytes(photo())
    found = [note.partition(": ")[2] for note in notes_of(folder)]
    assert found == [
        "1 files or folders have the suffix (none): dog/README",
        "2 files or folders have the suffix .jfif: dog/a.jfif",
        "1 files or folders have the suffix .avif: dog/c.avif",
    ]


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113619", "slice.DCM.bak"])
def test_a_set_without_images_says_what_is_there(name, tmp_path):
    root = tmp_path / "set"
    (root / "train").mkdir(parents=True)
    (root / "train" / name).write_bytes(b"no picture")
    flags = ["-dataset", "folder", "-data_path", str(root)]
    what = r"train: no images found; .*1 files or folders have the suffix .*: " + name
    with pytest.raises(UserError, match=what):
        notes_of(root, "none")
    with pytest.raises(UserError, match=what):
        curate.main([*flags, "-out", str(tmp_path / "out")])
    hint = "" if name.endswith("bak") else r" \(DICOM files are read if their names end in .dcm\)"
    with pytest.raises(UserError, match=rf"no images found; .*1 files or folders have the suffix [^:]*{hint}: {name}"):
        channel_statistics.main(flags)


def test_images_outside_of_classes_are_counted(folder):
    (folder / "train" / "stray.png").write_bytes(photo())
    (note,) = notes_of(folder)
    assert "1 images are in no folder of a class, and are left out: " in note
    assert "stray.png" in note


def test_a_val_split_that_lacks_a_class_is_a_warning(folder):
    (folder / "val" / "cat" / "0.png").unlink()
    (folder / "val" / "cat" / "1.png").unlink()
    source = datasets.open_source("folder", str(folder), "val", num_classes=2)
    (note,) = source.check(num_classes=2, channels=3, is_val=True)
    assert "1 classes have no images: cat" in note
    with pytest.raises(UserError, match="1 classes have no images: cat"):
        source.check(num_classes=2, channels=3)


def test_all_is_well_only_if_everything_is_used(folder, capsys):
    arguments = ["-dataset", "folder", "-data_path", str(folder)]
    assert check_dataset.main(arguments) == 0
    assert capsys.readouterr().out.endswith("all is well\n")
    (folder / "val" / "dog" / "new.heic").write_bytes(b"?")
    assert check_dataset.main(arguments) == 0
    out = capsys.readouterr().out
    assert "all is well" not in out
    assert "have the suffix .heic" in out


def test_linked_classes_keep_their_images(folder):
    (folder / "train" / "kitten").symlink_to(folder / "train" / "cat")
    source = datasets.open_source("folder", str(folder), "train", num_classes=3)
    assert np.bincount(source.labels).tolist() == [2, 2, 2]


def test_a_subset_looks_for_its_own_files_only(folder):
    (folder / "train_list.txt").write_text("train//cat/0.png 0\ntrain/cat/1.png 0\n./train/dog/0.png 1\ngone.png 1\n")
    source = datasets.open_source("imagenet2012", str(folder), "train", num_classes=2)
    assert source.missing() == [3]
    assert Subset(source, np.array([2, 0])).missing() == []
    with pytest.raises(UserError, match=r"1 files are missing: .*gone.png"):
        Subset(source, np.array([0, 3])).check(num_classes=2, channels=3)
    (folder / "train_list.txt").write_text("train/cat/0.png 0\n./train/cat/0.png 1\n")
    source = datasets.open_source("imagenet2012", str(folder), "train", num_classes=2)
    assert "1 images are listed more than once, 1 of them with two labels" in source.notes[0]


# ---- lists


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_marks_are_no_part_of_a_list(tmp_path, end, mark):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    text = end.join(f"{number}.png\tcaption {number}" for number in range(3))
    (tmp_path / "train.tsv").write_bytes(mark + text.encode())
    source = datasets.open_source("lists", str(tmp_path), "train", num_classes=1, needs="caption")
    assert [source.captions[index] for index in range(3)] == ["caption 0", "caption 1", "caption 2"]
    assert source.check(num_classes=None, channels=3) == []
    assert source.describe(0) == str(tmp_path / "0.png")


def test_a_list_in_utf_16_says_what_to_do(tmp_path):
    (tmp_path / "train.tsv").write_bytes("0.png\ta\n".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16; save it as UTF-8"):
        datasets.open_source("lists", str(tmp_path), "train", num_classes=1)


def test_a_list_that_is_cut_while_it_is_used_is_one_line(tmp_path):
    (tmp_path / "0.png").write_bytes(photo())
    lines = "".join(f"0.png\tcaption {number}\n" for number in range(5000))
    (tmp_path / "train.tsv").write_text(lines)
    source = datasets.open_source("lists", str(tmp_path), "train", num_classes=1, needs="caption")
    assert source.captions[4999] == "caption 4999"
    (tmp_path / "train.tsv").write_text(lines[:1000])
    with pytest.raises(OSError, match="was changed while it is in use"):
        source.captions[4999]


def test_a_list_may_be_replaced_while_it_is_used(tmp_path):
    (tmp_path / "train.tsv").write_text("0.png\told\n")
    source = datasets.open_source("lists", str(tmp_path), "train", num_classes=1, needs="caption")
    (tmp_path / "new.tsv").write_text("1.png\tnew\n")
    (tmp_path / "new.tsv").replace(tmp_path / "train.tsv")
    assert source.captions[0] == "old"


# ---- shards


def notes_of_shards(root, needs="none", split="train") -> list[str]:
    return [note.partition(": ")[2] for note in WebShards(root, split, needs).notes]


def test_members_with_dots_in_their_names_are_read(tmp_path):
    members = {"b.v1.png": photo(1), "b.v1.cls": b"1", "b.v2.png": photo(2), "b.v2.cls": b"\xef\xbb\xbf2"}
    write_tar(tmp_path / "0.tar", members)
    source = WebShards(tmp_path, "train", "labels")
    assert [source.labels[index] for index in range(2)] == [[1], [2]]
    assert notes_of_shards(tmp_path) == []


def test_further_fields_of_a_sample_are_counted(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": photo(1), "a.seg.png": photo(2), "a.txt": b"\xef\xbb\xbfa cat"})
    source = WebShards(tmp_path, "train", "none")
    assert (len(source), source.captions[0]) == (1, "a cat")
    assert notes_of_shards(tmp_path) == ["1 members are further fields of a sample that has an image: a.seg"]


def test_what_is_not_understood_in_shards_is_counted(tmp_path):
    members = {
        "0.png": photo(),
        "0.cls": b"dog",
        "1.png": photo(),
        "1.json": b"{",
        "2.avif": b"?",
        "3.avif": b"?",
        "__MACOSX/._0.png": b"?",
        "4.txt": b"no image",
    }
    write_tar(tmp_path / "0.tar", members)
    notes = notes_of_shards(tmp_path)
    assert len(notes) == 5
    for words in ("(.cls) are not understood", "(.json) are not understood", "2 members have the suffix .avif: 2.avif"):
        assert any(words in note for note in notes), words
    assert any("are hidden, or of an operating system: __MACOSX/._0.png" in note for note in notes)
    assert "1 members have no image: 4" in notes
    assert notes_of_shards(tmp_path) == notes, "the same from the index"


def test_labels_that_are_words_leave_images_out_by_number(tmp_path):
    write_tar(tmp_path / "0.tar", {"0.png": photo(), "0.cls": b"dog", "1.png": photo(), "1.cls": b"1"})
    source = WebShards(tmp_path, "train", "labels")
    assert len(source) == 1
    assert source.notes[-1].endswith("1 images without labels are left out")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("00000.tar", "train"),
        ("train-0.tar", "train"),
        ("imagenet-val-000.tar", "val"),
        ("validation_3.tar", "val"),
        ("test-00.tar", "test"),
        ("contest.tar", "train"),
        ("interval1.tar", "train"),
    ],
)
def test_the_name_of_a_shard_tells_its_split(name, split):
    assert shard_split(name) == split


def test_shards_of_other_splits_are_not_trained_on(tmp_path):
    write_tar(tmp_path / "x-train-0.tar", {"0.png": photo(), "0.cls": b"0"})
    write_tar(tmp_path / "x-val-0.tar", {"1.png": photo(), "1.cls": b"1"})
    write_tar(tmp_path / "x-test-0.tar", {"2.png": photo(), "2.cls": b"2"})
    (tmp_path / "3.tar.gz").write_bytes(b"?")
    train, val = (WebShards(tmp_path, split, "labels") for split in ("train", "val"))
    assert [train.labels[0], val.labels[0]] == [[0], [1]]
    assert [len(train), len(val)] == [1, 1]
    assert any("1 members (whole shards) are of the test split: x-test-0.tar" in note for note in train.notes)
    assert any("(whole files) have the suffix .gz: 3.tar.gz" in note for note in train.notes)


def test_a_folder_of_shards_may_be_called_like_a_split(tmp_path):
    (tmp_path / "train").mkdir()
    for number, name in enumerate(("train-0.tar", "val-0.TAR")):
        write_tar(tmp_path / "train" / name, {f"{number}.png": photo(), f"{number}.cls": str(number).encode()})
    train, val = (WebShards(tmp_path / "train", split, "labels") for split in ("train", "val"))
    assert [(len(one), one.labels[0]) for one in (train, val)] == [(1, [0]), (1, [1])]


def test_shards_that_are_not_used_are_counted(tmp_path):
    (tmp_path / "train" / "more").mkdir(parents=True)
    for name in ("train/a.tar", "b.tar", "train/more/c.tar", "train/._d.tar"):
        write_tar(tmp_path / name, {"0.png": photo()})
    (tmp_path / "train" / "e.tar").symlink_to(tmp_path / "absent")
    notes = "\n".join(notes_of_shards(tmp_path))
    for words in (
        "1 shards are beside the folder train, and are left out: b.tar",
        "(whole folders) are not looked into: more",
        "(whole files or folders) are hidden, or of an operating system: ._d.tar",
        "are broken links, or not regular files: e.tar",
    ):
        assert words in notes


def test_reasons_are_told_where_nothing_is_left(tmp_path):
    write_tar(tmp_path / "0.tar", {"0.png": photo(), "0.json": b'{"label": "1"}'})
    with pytest.raises(UserError, match=r"hold no images with labels; .*are not understood \(labels must be integers"):
        WebShards(tmp_path, "train", "labels")


def test_a_shard_that_was_replaced_is_noticed(tmp_path):
    """With the same size and the same time, as `rsync -t` leaves it."""
    import os

    write_tar(tmp_path / "0.tar", {"a.png": photo(1), "a.cls": b"1"})
    WebShards(tmp_path, "train", "labels")
    about = (tmp_path / "0.tar").stat()
    write_tar(tmp_path / "0.tar", {"b.png": photo(2), "b.cls": b"2"})
    os.utime(tmp_path / "0.tar", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (tmp_path / "0.tar").stat().st_size == about.st_size
    with pytest.raises(UserError, match="was replaced; delete"):
        WebShards(tmp_path, "train", "labels").read(0)


@pytest.mark.parametrize("damage", ["labels", "counts", "places", "left_out", "damaged", "nested"])
def test_an_index_of_a_stranger_is_checked(tmp_path, damage):
    write_tar(tmp_path / "0.tar", {f"{n}.png": photo(n) for n in range(3)} | {"2.cls": b"1"})
    WebShards(tmp_path, "train", "none")
    index = tmp_path / ".shard-index"
    file = index / ("train.npz" if damage in ("counts", "damaged", "nested") else "0.tar.npz")
    arrays = dict(np.load(file))
    if damage == "labels":
        arrays["labels"] = np.array([-5])
    elif damage == "counts":
        arrays["count_none"] = np.array([10**12])
    elif damage == "damaged":
        arrays["damaged"] = np.array(5)
    elif damage == "nested":
        arrays["left_out"] = np.array("[" * 100_000)
    elif damage == "places":
        arrays["image"][0] = (2**62, 2**62)
    else:
        arrays["left_out"] = np.array(json.dumps({"x": [-1, "y"]}))
    np.savez(file, **arrays)
    found = WebShards(tmp_path, "train", "none")
    assert len(found) == 3
    if damage in ("counts", "damaged", "nested"):  # it was made again
        assert found.read(0) == photo(0)
        return
    with pytest.raises(UserError, match="delete"):
        found.read(0)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157], block[257:265] = b"0000644\0", size, kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "content",
    [
        header(b"a.png", b"\xff" * 11 + b"\x00") * 3,  # a negative size
        header(b"a", b"20000000000\0", b"x"),  # attributes of 2 GiB
        header(b"a", b"20000000000\0", b"g"),
        header(b"a", b"20000000000\0", b"L"),
        header(b"a", b"00000000024\0", b"x") + b"20 size=-1000000000\n".ljust(512, b"\0") + header(b"b.png", b"0" * 12),
    ],
    ids=["negative", "x", "g", "L", "negative in attributes"],
)
def test_headers_that_claim_nonsense_end_the_shard(tmp_path, content):
    (tmp_path / "0.tar").write_bytes(content + bytes(1024))
    with pytest.raises(UserError, match="damaged"):
        WebShards(tmp_path, "train", "none")


def test_a_lock_is_not_opened_through_a_link(tmp_path):
    write_tar(tmp_path / "0.tar", {"a.png": photo(1)})
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".shard-index").mkdir()
    (tmp_path / ".shard-index" / "train.lock").symlink_to(tmp_path / "precious")
    assert len(WebShards(tmp_path, "train", "none")) == 1
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path):
    import os

    write_tar(tmp_path / "0.tar", {"a.png": photo(1)})
    (tmp_path / ".shard-index").mkdir()
    os.mkfifo(tmp_path / ".shard-index" / "train.lock")
    assert len(WebShards(tmp_path, "train", "none")) == 1
