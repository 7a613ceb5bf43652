"""A set with planted copies, leaks and broken files: what is found, kept and written, and the page in a browser."""

import csv
import errno
import functools
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import datasets
from errors import UserError
from measures.curation import alignment, balance, duplicates
from pipeline import name_lists
from tests.helpers.browser import needs_browser
from tests.measures.curation.test_alignment import VARIANTS, picture
from tools import check_dataset, curate, split

COPIES = ("jpeg", "half", "bright", "crop 90", "crop 70")
NUM_PHOTOS = 12


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return train/<class> and val/<class> with 12 pictures each of two classes, and copies planted."""
    root = tmp_path_factory.mktemp("photos")
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
    for number in range(2 * NUM_PHOTOS):
        folder = root / ("train" if number < NUM_PHOTOS + 6 else "val") / "ab"[number % 2]
        picture(number).save(folder / f"{number:02d}.png")
    train = root / "train"
    shutil.copy(train / "a" / "00.png", train / "a" / "same file.png")
    picture(1).save(train / "b" / "same pixels.png", compress_level=1)
    for number, name in enumerate(COPIES, 2):
        VARIANTS[name](picture(number)).convert("RGB").save(train / "ab"[number % 2] / f"{name}.png")
    ImageOps.mirror(picture(7)).save(train / "b" / "mirrored.png")
    VARIANTS["jpeg"](picture(20)).save(train / "a" / "leaked.png")  # picture 20 is in val
    VARIANTS["half"](picture(8)).save(train / "b" / "other label.png")
    (train / "a" / "broken.png").write_bytes(b"no image")
    return root


def run(out, *words):
    return curate.main(["-out", str(out), "-workers", "2", *map(str, words)])


def read(file):
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened, delimiter="\t"))


@pytest.fixture(scope="module")
def curated(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("curated")
    return run(out, "-dataset", "folder", "-data_path", photos, "-target", 10), out


def test_planted_copies_are_found_and_nothing_else(curated):
    summary, out = curated
    groups = [json.loads(line) for line in (out / "groups.jsonl").read_text().splitlines()]
    found = {tuple(sorted(Path(member["name"]).stem for member in group["members"])): group for group in groups}
    wanted = {("00", "same file"): "file", ("01", "same pixels"): "pixels", ("07", "mirrored"): "near"}
    wanted |= {(f"{number:02d}", name): "crop" if "crop" in name else "near" for number, name in enumerate(COPIES, 2)}
    wanted |= {("20", "leaked"): "near", ("08", "other label"): "near"}
    assert {names: group["kind"] for names, group in found.items()} == wanted
    assert [group["mirrored"] for names, group in found.items() if group["mirrored"]] == [True]
    assert found["07", "mirrored"]["mirrored"]
    assert all(group["correlation"] >= alignment.SAME for group in groups)
    assert found["03", "half"]["kept"] == "b/03.png", "the larger one"
    assert summary["groups"] == {"file": 1, "pixels": 1, "near": 6, "crop": 2}
    assert summary["unreadable"] == 1


def test_leaks_and_contradictions_are_told(curated):
    summary, out = curated
    (leak,) = read(out / "leaks.tsv")
    assert (leak["image"], leak["split"], leak["other"], leak["kind"]) == ("a/20.png", "val", "a/leaked.png", "near")
    assert summary["images of val that train has"] == 1
    first = read(out / "labels.tsv")[0]
    assert {first["image"], first["proposed"]} == {"b/other label.png", "a"}
    assert summary["copies with two labels"] == 1
    quality = {row["image"]: row for row in read(out / "quality.tsv")}
    assert "cannot be read" in quality["a/broken.png"]["problem"]
    assert len(quality) == summary["images"]["train"] + summary["images"]["val"]
    assert float(quality["b/mirrored.png"]["brightness"]) == pytest.approx(float(quality["b/07.png"]["brightness"]))


def test_the_list_to_keep_trains_a_run(curated, photos, tiny_run):
    from methods import dispatch

    summary, out = curated
    keep = name_lists.read_names(out / "keep.txt", "")
    assert len(keep) == summary["kept"] == NUM_PHOTOS + 6
    assert not {"a/leaked.png", "a/broken.png", "a/same file.png"} & set(keep)
    balanced = name_lists.read_names(out / "balanced.txt", "")
    assert len(balanced) == 10
    assert set(balanced) <= set(keep)
    opts = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(photos), "DATA.TRAIN_LIST", str(out / "keep.txt")]
    result = tiny_run("pretrain", *opts, "TRAIN.NUM_EPOCHS", 1)
    dispatch.train_or_evaluate(result)
    assert len(name_lists.read_names(result.directory / "train_images.txt", "")) == len(keep)


def test_other_workers_and_a_second_start_write_the_same_bytes(curated, photos, tmp_path):
    _, out = curated
    flags = ["-dataset", "folder", "-data_path", str(photos), "-target", "10"]
    curate.main(["-out", str(tmp_path / "one"), "-workers", "0", *flags])
    curate.main(["-out", str(tmp_path / "one"), "-workers", "1", *flags])  # all from the cache
    names = sorted(path.name for path in out.iterdir() if path.is_file())
    assert names == sorted(path.name for path in (tmp_path / "one").iterdir() if path.is_file())
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


_KILLED = """
import os, signal, sys
from pathlib import Path
from measures.curation import image_facts
from tools import curate

image_facts._JOB, image_facts._BLOCK = 2, 8
read, out = image_facts.look_at, Path(sys.argv[2])

def look_at(source, index):
    if (out / "cache" / "about.json").exists():  # a block is done, and the next one is being read
        os.kill(os.getppid(), signal.SIGKILL)
    return read(source, index)

image_facts.look_at = look_at
curate.main(sys.argv[1:])
"""


def test_a_command_that_is_killed_while_it_reads_goes_on_and_writes_the_same_bytes(curated, photos, tmp_path):
    _, out = curated
    flags = ["-out", str(tmp_path / "one"), "-dataset", "folder", "-data_path", str(photos), "-target", "10"]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *flags, "-workers", "2"], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "one" / "index.html").exists()
    about = json.loads((tmp_path / "one" / "cache" / "about.json").read_text())
    assert 0 < about["done"] < NUM_PHOTOS
    known = np.load(tmp_path / "one" / "cache" / "facts.npy", mmap_mode="r")[: about["done"]].copy()
    assert (known["pixels"] != b"").all()
    curate.main(flags)
    for path in out.iterdir():
        assert path.is_dir() or path.read_bytes() == (tmp_path / "one" / path.name).read_bytes(), path.name


def test_a_cache_of_other_images_is_replaced(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "set")
    flags = ["-dataset", "folder", "-data_path", tmp_path / "set", "-map", "pca"]
    before = run(tmp_path / "out", *flags)
    shutil.copy(tmp_path / "set" / "train" / "a" / "02.png", tmp_path / "set" / "train" / "a" / "14.png")
    after = run(tmp_path / "out", *flags)
    assert after["images in groups"] == before["images in groups"] + 1


def test_a_full_disk_and_a_damaged_cache(photos, tmp_path, monkeypatch, capsys):
    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    flags = ["-dataset", "folder", "-data_path", photos, "-map", "pca"]
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", fill)
        with pytest.raises(UserError, match="cache: cannot be written: No space left on device"):
            run(tmp_path / "out", *flags)
    before = run(tmp_path / "out", *flags)
    facts = tmp_path / "out" / "cache" / "facts.npy"
    other = io.BytesIO()
    np.save(other, np.zeros(5))
    for damage in (facts.read_bytes()[:5000], b"", b"no array", other.getvalue()):
        facts.write_bytes(damage)
        capsys.readouterr()
        assert run(tmp_path / "out", *flags) == before
        assert "facts.npy" in capsys.readouterr().out, "said, and read again"
    note = tmp_path / "out" / "cache" / "about.json"
    for done in (-5, 99999):
        note.write_text(json.dumps({**json.loads(note.read_text()), "done": done}))
        assert run(tmp_path / "out", *flags) == before


def test_features_of_an_encoder_find_more_and_are_cached(photos, trained, tmp_path, capsys):
    encoder = trained("pretrain", "DATA.DATASET", "folder", "DATA.DATA_PATH", str(photos), "DATA.BAD_IMAGES", "skip")
    out = tmp_path / "out"
    summary = run(out, encoder, "-map", "pca", "-target", "10")
    assert summary["groups"] == {"file": 1, "pixels": 1, "near": 6, "crop": 2}
    assert summary["by"] == str(encoder)
    own = [row["image"] for row in read(out / "quality.tsv") if row["split"] == "train" and not row["problem"]]
    places = [own.index(name) for name in name_lists.read_names(out / "keep.txt", "")]
    features = np.load(out / "cache" / "train" / "features.npy")[places]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    wanted = [own[places[place]] for place in balance.balanced(unit, 10)]
    assert name_lists.read_names(out / "balanced.txt", "") == wanted, "by the features as they are, not standardised"
    capsys.readouterr()
    run(tmp_path / "out", encoder, "-map", "pca")
    assert "are taken from" in capsys.readouterr().out


def test_what_was_not_looked_at_is_noted(photos, tmp_path, monkeypatch, capsys):
    flags = ("-dataset", "folder", "-data_path", photos, "-map", "pca", "-near", "0.3")
    assert run(tmp_path / "all", *flags)["notes"] == []
    monkeypatch.setattr(duplicates, "MOST_WITH_WINDOWS", 10)
    monkeypatch.setattr(duplicates, "pairs_above", functools.partial(duplicates.pairs_above, most=30))
    summary = run(tmp_path / "some", *flags)
    raised, windows = summary["notes"]
    assert float(re.search(r"those from a cosine of ([\d.]+) on were", raised)[1]) > 0.3
    assert "crops were not looked for by windows" in windows
    assert raised in capsys.readouterr().out
    assert summary["groups"]["near"] == 6


def test_dropped_lists_and_sets_without_splits_or_labels(photos, tmp_path):
    kept = run(tmp_path / "all", "-data_path", photos / "train", "-dataset", "folder", "-map", "pca")
    assert any("has no splits" in note for note in kept["notes"])
    assert kept["classes"] == 2
    dropped = run(
        tmp_path / "some", "-data_path", photos / "train", "-dataset", "folder", "-drop", "labels", "-map", "pca"
    )
    assert dropped["kept"] <= kept["kept"]
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (90, 20, 30)).save(flat / f"{number}.png")
    Image.new("RGB", (1, 1)).save(flat / "<script>alert(1)</script>'.png".replace("/", ":"))
    summary = run(tmp_path / "equal", "-data_path", flat, "-dataset", "folder")
    assert summary["groups"]["file"] == 1
    assert "classes" not in summary
    (tmp_path / "only" / "train").mkdir(parents=True)
    picture(1).save(tmp_path / "only" / "train" / "1.png")
    picture(2).save(tmp_path / "only" / "train" / "2.png")
    flags = ("-data_path", photos / "train", "-dataset", "folder", "-map", "pca")
    whole = run(tmp_path / "whole", *flags, "-splits", "train")
    assert whole["classes"] == 2
    with pytest.raises(UserError, match="has folders of classes and no splits"):
        run(tmp_path / "none", *flags, "-splits", "val")
    alone = run(tmp_path / "alone", "-data_path", tmp_path / "only", "-dataset", "folder", "-map", "pca")
    assert alone["images"] == {"train": 2}, "the folder above train is not val"
    assert "has no val split" in alone["notes"][0]
    assert "<script>alert" not in (tmp_path / "equal" / "index.html").read_text()


def test_odd_names_are_found_again_by_the_lists(tmp_path):
    names = [
        "new\nline.png",
        "new\\nline.png",
        " space.png",
        "# hash.png",
        "tab\t.png",
        "\udcff.png",
        "</script>${1}`.png",
    ]
    (tmp_path / "set" / "train").mkdir(parents=True)
    for number, name in enumerate(["plain.png", *names]):
        picture(number, 40, 30).save(tmp_path / "set" / "train" / "temporary.png")
        (tmp_path / "set" / "train" / "temporary.png").rename(tmp_path / "set" / "train" / name.replace("/", ":"))
    run(tmp_path / "out", "-dataset", "folder", "-data_path", tmp_path / "set", "-map", "pca")
    source = datasets.open_source("folder", str(tmp_path / "set"), "train", num_classes=1, needs="none")
    found = name_lists.find_listed(source, tmp_path / "out" / "keep.txt", "-list")
    assert found.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which images"),
        (["-dataset", "folder"], "-data_path is missing"),
        (["-dataset", "folder", "-data_path", "nowhere"], "no such directory"),
        (["-dataset", "folder", "-data_path", ".", "-target", "0"], "-target 0: must be at least 1"),
        (["-dataset", "folder", "-data_path", "empty"], "no images found"),
        (["-dataset", "folder", "-data_path", "."], "-out .*lies in the data set"),
    ],
)
def test_errors(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", *words)


def test_a_set_that_cannot_be_read_at_all(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 1 images can be read; the first: .*1\.png"):
        run(tmp_path / "out", "-dataset", "folder", "-data_path", tmp_path / "set")


@needs_browser
def test_the_page_in_a_browser(curated, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    _, out = curated
    options = webdriver.ChromeOptions()
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1400"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options)
    try:
        browser.get((out / "index.html").as_uri())
        chart = browser.find_element(By.ID, "map")
        steps = ActionChains(browser).move_to_element_with_offset(chart, -200, -200).click_and_hold()
        for x, y in ((400, 0), (0, 400), (-400, 0), (0, -399)):
            steps = steps.move_by_offset(x, y)
        steps.release().perform()
        chosen = browser.find_elements(By.CSS_SELECTOR, ".side .item")
        assert 0 < len(chosen) < 40
        chart.send_keys(Keys.ESCAPE)
        assert not browser.find_elements(By.CSS_SELECTOR, ".side .item")
        tabs = {tab.text.split(" (")[0]: tab for tab in browser.find_elements(By.CSS_SELECTOR, "#tabs button")}
        tabs["Groups"].click()
        boxes = browser.find_elements(By.CSS_SELECTOR, ".pair input")
        assert len(boxes) == 10
        boxes[0].click()
        browser.find_element(By.XPATH, "//button[text()='Save the ticked names']").click()
        saved = tmp_path / "copies.txt"
        for _ in range(100):
            if saved.exists():
                break
            time.sleep(0.1)
        assert len(name_lists.read_names(saved, "")) == 9
        for name, tab in tabs.items():
            tab.click()
            assert browser.find_element(By.ID, "panel").text, name
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith((out.as_uri(), "data:", "blob:")) for url in asked), asked
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.quit()


def test_a_split_keeps_copies_on_one_side(photos, tmp_path, capsys):
    root = tmp_path / "set"
    shutil.copytree(photos / "train", root)
    for number in range(30, 50):
        picture(number).save(root / "ab"[number % 2] / f"{number}.png")
    is_val = split.main([str(root), "-val", "0.3"])
    sides = [
        {line.rsplit(" ", 1)[0] for line in (root / f"{part}_list.txt").read_text().splitlines()}
        for part in ("train", "val")
    ]
    assert len(sides[1]) == is_val.sum()
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == len(list(root.rglob("*.png")))
    for pair in (("a/00.png", "a/same file.png"), ("b/07.png", "b/mirrored.png"), ("b/05.png", "b/crop 90.png")):
        assert any(set(pair) <= side for side in sides), pair
    assert "1 images cannot be read" in capsys.readouterr().out
    np.testing.assert_array_equal(split.main([str(root), "-val", "0.3"]), is_val)
    assert (split.main([str(root), "-val", "0.3", "-seed", "1"]) != is_val).any()
    with pytest.raises(UserError, match="expected folders of classes"):
        split.main([str(photos)])
    for line in (
        '{"members": []}',
        "[" * 100_000,
        '{"members": [{"name": ["a"]}]}',
        '{"members": [{"name": "b/none.png"}]}',
    ):
        (tmp_path / "groups.jsonl").write_text(line)
        with pytest.raises(UserError, match="groups.jsonl: line 1 does not name images of"):
            split.main([str(root), "-groups", str(tmp_path / "groups.jsonl")])
    (root / " c").mkdir()
    picture(60).save(root / " c" / "1.png")
    with pytest.raises(UserError, match="1 names have line breaks, .*rename them"):
        split.main([str(root)])
    (root / " c").rename(root / "c")
    split.main([str(root)])
    assert "1 classes have no image in val" in capsys.readouterr().out


def test_a_split_by_groups_that_are_given():
    labels, group = np.repeat([0, 1], 10), np.arange(20)
    group[3:10] = 3
    group[[0, 12]] = 0  # a group with two classes
    is_val = split.divide(labels, group, 0.2, seed=0)
    assert is_val[3:10].all() or not is_val[3:10].any()
    assert not is_val[[0, 12]].any()
    assert is_val[labels == 1].sum() == 2


def test_check_dataset_names_exact_copies_and_leaks(photos, capsys):
    shutil.copy(photos / "train" / "b" / "03.png", photos / "val" / "b" / "leaked.png")
    try:
        check_dataset.main(["-dataset", "folder", "-data_path", str(photos), "-full"])
    finally:
        (photos / "val" / "b" / "leaked.png").unlink()
    shown = capsys.readouterr().out
    assert "1 images are copies of others: a/same file.png = train a/00.png" in shown
    assert "1 images are in another split, too: b/leaked.png = train b/03.png" in shown
