"""Labels for new photos: tables, names, what cannot be read, stopping and resuming, moving, pages."""

import csv
import errno
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

from clip import load_clip
from errors import UserError
from measures import prediction
from methods import dispatch
from pages import prediction_table
from pipeline.transforms import eval_transform
from tests.conftest import assert_close
from tests.helpers.small_clip import write_clip
from tools import predict

pytestmark = pytest.mark.quick


@pytest.fixture
def run(tiny_run, image_folder):
    """Return the directory of a finetuning run on the classes cat, dog and red fox."""
    opts = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(image_folder), "MODEL.NUM_CLASSES", 3]
    run = tiny_run("finetune", *opts, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    return run.directory


@pytest.fixture
def photos(image_folder, tmp_path):
    """Return a folder of 12 photos below folders of other names, and one file that is not a photo."""
    folder = tmp_path / "new photos"
    for number, name in enumerate(("cat", "dog", "red fox")):
        shutil.copytree(image_folder / "val" / name, folder / f"unsorted {number}")
    (folder / "broken.jpg").write_bytes(b"not a photo")
    return folder


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def call(run, *photos, **flags):
    words = [str(word) for name, value in flags.items() for word in (f"-{name}", value)]
    return predict.main([str(run), *map(str, photos), *words])


def test_classes_are_those_of_the_network(run, photos, tmp_path):
    out = call(run, photos, out=tmp_path / "p.csv", topk=2, batch_size=4)
    rows = read(out)
    assert len(rows) == 13
    model = prediction.load(run)
    assert model.class_names == ["cat", "dog", "red fox"], "by the run, as the folders have other names"
    reader = eval_transform(model.config)
    for row in rows:
        if row["file"].endswith("broken.jpg"):
            assert "none of the formats" in row["error"]
            assert row["class_1"] == row["probability_1"] == ""
            continue
        with Image.open(row["file"]) as image:
            pixels = reader(image.convert("RGB"), np.random.default_rng(0))
        logits = model.network(paddle.to_tensor(pixels[None]))[0].numpy().astype(np.float64)
        expected = np.exp(logits - logits.max())
        expected /= expected.sum()
        best = np.argsort(-expected)[:2]
        assert [row["class_1"], row["class_2"]] == [model.class_names[label] for label in best]
        assert_close(np.array([row["probability_1"], row["probability_2"]], float), expected[best], 1e-5)  # six digits


def test_python_takes_pictures_files_and_folders(run, photos):
    model = prediction.load(run)
    files = sorted(photos.glob("*/*.jpg"))[:3]
    from_files = prediction.predict(model, files)
    from_pictures = prediction.predict(model, [Image.open(file) for file in files])
    assert [row.probabilities for row in from_files] == [row.probabilities for row in from_pictures]
    with pytest.raises(UserError, match="has both files and pictures"):
        prediction.predict(model, [files[0], Image.open(files[1])])
    assert len(prediction.predict(model, photos)) == 13
    assert predict.predict(run, str(files[0]), topk=1)[0].classes == from_files[0].classes[:1], "by a run's path, too"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("cut", [0, 7])
def test_a_stopped_command_resumes_with_the_same_table(run, photos, tmp_path, monkeypatch, suffix, cut):
    whole = call(run, photos, out=tmp_path / f"whole.{suffix}", batch_size=4)
    add, seen = prediction_table.Progress.add, []

    def stop_after_two(self, batch):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(batch)
        add(self, batch)

    monkeypatch.setattr(prediction_table.Progress, "add", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        call(run, photos, out=tmp_path / f"stopped.{suffix}", batch_size=4)
    monkeypatch.undo()
    progress = tmp_path / f".stopped.{suffix}.progress"
    if cut:  # a line that was not written whole
        progress.write_bytes(progress.read_bytes()[:-cut])
    predicted = []
    monkeypatch.setattr(
        prediction_table.Progress, "add", lambda self, batch: (predicted.append(len(batch)), add(self, batch))
    )
    stopped = call(run, photos, out=tmp_path / f"stopped.{suffix}", batch_size=4)
    assert stopped.read_bytes() == whole.read_bytes()
    assert sum(predicted) == (9 if cut else 5)
    assert not progress.exists()


def test_progress_of_other_photos_or_weights_is_not_used(run, photos, tmp_path, monkeypatch):
    config = prediction.load(run).config
    about = [prediction_table.fingerprint(words, run, config, names) for words in ([1], [2]) for names in ("a", "b")]
    assert len(set(about)) == 4
    own, other = (
        prediction_table.digest_of_photos(prediction.open_photos([folder]))
        for folder in (photos, photos / "unsorted 0")
    )
    first = prediction_table.Progress(tmp_path / "p.csv", about[0])
    first.keep_for(own)
    first.add([prediction.Prediction("x", ["a"], [1.0])])
    with pytest.raises(UserError, match="by another process"):
        prediction_table.Progress(tmp_path / "p.csv", about[0])
    first._opened.close()
    again = prediction_table.Progress(tmp_path / "p.csv", about[0])
    again.keep_for(own)
    assert again.done == 1
    again.keep_for(other)
    assert again.done == 0
    again._opened.close()
    assert prediction_table.Progress(tmp_path / "p.csv", about[1]).done == 0


def test_lists_and_shards(run, photos, tmp_path):
    names = sorted(file.relative_to(tmp_path).as_posix() for file in photos.glob("*/*.jpg"))
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in names) + "absent.jpg\n")
    rows = read(call(run, tmp_path / "list.txt", out=tmp_path / "p.csv"))
    assert [row["file"] for row in rows] == [str(tmp_path / name) for name in (*names, "absent.jpg")]
    assert "No such file" in rows[-1]["error"]
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "00000.tar", "w") as shard:
        for number, name in enumerate(names):
            shard.add(tmp_path / name, f"{number:05d}.jpg")
    from_shards = read(call(run, tmp_path / "shards", out=tmp_path / "s.csv"))
    assert [row["probability_1"] for row in from_shards] == [row["probability_1"] for row in rows[:-1]]
    with pytest.raises(UserError, match="cannot be moved"):
        call(run, tmp_path / "shards", out=tmp_path / "s.csv", move=tmp_path / "sorted")


def test_moving_replaces_nothing_and_is_recorded(run, photos, tmp_path):
    before = {file: file.read_bytes() for file in photos.glob("*/*.jpg")}
    sorted_folder = tmp_path / "sorted"
    for name in ("cat", "dog", "red fox"):  # a name that is taken, in each class
        (sorted_folder / name).mkdir(parents=True)
        (sorted_folder / name / "0 0.jpg").write_bytes(b"mine")
    rows = read(call(run, photos, out=tmp_path / "p.csv", move=sorted_folder))
    moves = dict(json.loads(line) for line in (tmp_path / "p.moved.jsonl").read_text().splitlines())
    assert set(moves) == {str(file) for file in before}
    class_of = {row["file"]: row["class_1"] for row in rows}
    for file, content in before.items():
        target = tmp_path / moves[str(file)]
        assert target.read_bytes() == content
        assert target.parent == sorted_folder / class_of[str(file)]
    assert all((sorted_folder / name / "0 0.jpg").read_bytes() == b"mine" for name in ("cat", "dog", "red fox"))
    assert (photos / "broken.jpg").exists()


def test_a_killed_move_goes_on_with_the_whole_table(run, photos, tmp_path, monkeypatch):
    expected = call(run, photos, out=tmp_path / "whole.csv").read_bytes()
    before = sorted(file.read_bytes() for file in photos.glob("*/*.jpg"))
    move_file, moved = prediction_table._move_file, []

    def stop_after_three(source, target):
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(source)
        move_file(source, target)

    monkeypatch.setattr(prediction_table, "_move_file", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        call(run, photos, out=tmp_path / "p.csv", move=photos / "sorted")
    monkeypatch.undo()
    assert call(run, photos, out=tmp_path / "p.csv", move=photos / "sorted").read_bytes() == expected
    assert sorted(file.read_bytes() for file in (photos / "sorted").glob("*/*.jpg")) == before
    call(run, photos, out=tmp_path / "p.csv", move=photos / "sorted")  # those in their folders stay there
    assert not list((photos / "sorted").glob("*/*-2-2.jpg"))
    assert sorted(file.read_bytes() for file in (photos / "sorted").glob("*/*.jpg")) == before


def test_moving_to_another_disk_leaves_one_copy_whatever_happens(photos, tmp_path, monkeypatch):
    source, target = next(photos.glob("*/*.jpg")), tmp_path / "new" / "x.jpg"
    content = source.read_bytes()

    def across(*paths):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    rename = os.rename
    monkeypatch.setattr(os, "rename", across)
    target.parent.mkdir()
    with monkeypatch.context() as full:
        full.setattr(shutil, "copy2", lambda *paths: across())
        with pytest.raises((OSError, UserError)):
            prediction_table._move_file(source, target)
    assert (source.read_bytes(), list(target.parent.iterdir())) == (content, [])
    prediction_table._move_file(source, target)
    assert (target.read_bytes(), source.exists()) == (content, False)
    rename(target, source)
    with monkeypatch.context() as read_only:
        unlink = Path.unlink
        deny = lambda path, **options: across() if path == source else unlink(path, **options)
        read_only.setattr(Path, "unlink", deny)
        with pytest.raises(OSError, match="cross-device"):
            prediction_table._move_file(source, target)
    assert (source.read_bytes(), list(target.parent.iterdir())) == (content, [])


def test_a_link_leads_where_it_led(photos, tmp_path):
    file = next(photos.glob("*/*.jpg"))
    link = file.with_name("link.jpg")
    link.symlink_to(file.name)
    prediction_table._move_file(link, tmp_path / "moved.jpg")
    assert (tmp_path / "moved.jpg").read_bytes() == file.read_bytes()
    assert not link.is_symlink()


def test_class_names_become_folders():
    names = ["a/b", "..", "", "n01440764 tench", "a_b", " "]
    found = prediction_table.folder_names(names)
    assert list(found.values()) == ["a_b", "_..", "_", "n01440764 tench", "a_b-4", "_-5"]


@pytest.mark.parametrize("size", [(1, 600), (600, 1)])
def test_narrow_photos_are_shown(run, tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "narrow.png")
    call(run, tmp_path / "narrow.png", out=tmp_path / "p.csv", html=tmp_path / "p.html")
    assert "data:image/" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize("name", ["list.TXT", "list.jsonl"])
def test_odd_lists(run, photos, tmp_path, name):
    line = '{"image": "\\ud800.jpg"}' if name.endswith("jsonl") else "absent.jpg"
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(UserError, match="none of the 1 photos"):
        call(run, tmp_path / name, out=tmp_path / "p.csv")


def test_the_page_shows_the_least_certain_first(run, photos, tmp_path):
    rows = read(call(run, photos, out=tmp_path / "p.csv", html=tmp_path / "p.html"))
    page = (tmp_path / "p.html").read_text()
    assert page.count("data:image/") == 12
    least = min((row for row in rows if not row["error"]), key=lambda row: float(row["probability_1"]))
    assert least["file"].rpartition("/")[2] in page.partition("<b>")[2].partition("</div>")[0]
    assert "broken.jpg" in page


def test_nothing_readable_is_an_error(run, photos, tmp_path):
    with pytest.raises(UserError, match="none of the 1 photos"):
        call(run, photos / "broken.jpg", out=tmp_path / "p.csv")
    assert "none of the formats" in read(tmp_path / "p.csv")[0]["error"]


def test_parquet_has_the_same_rows(run, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = read(call(run, photos, out=tmp_path / "p.csv"))
    found = parquet.read_table(call(run, photos, out=tmp_path / "p.parquet")).to_pylist()
    assert [row["file"] for row in found] == [row["file"] for row in rows]
    assert [row["class_1"] for row in found] == [row["class_1"] for row in rows]


def test_clip_chooses_among_texts(tmp_path, photos):
    clip = write_clip(tmp_path / "clip")
    texts = ["a cat", "a dog"]
    model = prediction.load(clip, texts=texts)
    found = prediction.predict(model, photos / "unsorted 0")
    expected = load_clip(clip).classify([row.file for row in found], texts).numpy()
    for row, values in zip(found, expected, strict=True):
        assert_close(np.array(row.probabilities), np.sort(values)[::-1], 1e-5)
    with pytest.raises(UserError, match="-texts"):
        prediction.load(clip)


@pytest.mark.parametrize(
    ("photos", "flags", "message"),
    [
        (["absent"], {}, "no such file or folder"),
        (["config.yaml"], {}, "is not a photo"),
        (["."], {"topk": 0}, "at least 1"),
        (["."], {"out": "p.txt"}, "must be a .csv or .jsonl or .parquet"),
        (["."], {"move": ""}, "-move '': is not a directory"),
        (["."], {"move": __file__}, "is not a directory"),
    ],
)
def test_mistakes(run, photos, flags, message, tmp_path):
    (run / "config.yaml").touch()
    with pytest.raises(UserError, match=message):
        call(run, *(run / photo for photo in photos), **{"out": tmp_path / "p.csv", **flags})
