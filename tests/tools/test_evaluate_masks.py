"""The evaluation of a segmenter: scores, tables, the worst images first, the page."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

import main_multi_gpu_finetune
from errors import UserError
from measures import prediction
from methods import segmentation_scores
from pipeline import scenes
from tests.helpers import script_runs
from tests.helpers.browser import BROWSER, check_page
from tests.methods.test_segmentation import SEG
from tools import evaluate

pytestmark = pytest.mark.quick


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a segmentation run of one epoch on a few generated scenes."""
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 24, "val": 5})
    return script_runs.train(main_multi_gpu_finetune.main, tmp_path, "seg", [*SEG, "TRAIN.NUM_EPOCHS", 1])


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_scores_tables_and_page(run, tmp_path):
    out = tmp_path / "out"
    scores = evaluate.main([str(run), "-out", str(out)])
    model, source = prediction.load(run), scenes.Scenes("val")
    maps = np.stack([labels for _, labels in prediction.label_maps(model, source)])
    masks = np.stack([source.mask(index) for index in range(len(source))])
    present = np.union1d(maps, masks)
    iou = jaccard_score(masks.ravel(), maps.ravel(), labels=present, average=None, zero_division=0)
    assert scores["miou"] == pytest.approx(100 * iou.mean(), rel=1e-6)
    assert scores["aacc"] == pytest.approx(100 * np.mean(maps == masks), rel=1e-6)
    assert (scores["images"], scores["classes"]) == (5, len(np.unique(masks)))
    assert f"miou {scores['miou']:.3f}" in (run / "log.txt").read_text()  # as the run itself has it
    assert json.loads((out / "scores.json").read_text()) == scores
    rows = read(out / "classes.csv")
    assert [float(row["iou"]) for row in rows] == pytest.approx(sorted(100 * iou))
    assert {row["class"]: int(row["pixels"]) for row in rows} == {
        scenes.CLASSES[label]: int((masks == label).sum()) for label in present
    }
    images = read(out / "images.csv")
    assert len(images) == 5
    assert [float(row["miou"]) for row in images] == sorted(float(row["miou"]) for row in images)
    own = [segmentation_scores.confusion(*pair, 8) for pair in zip(masks, maps, strict=True)]
    lowest = min(segmentation_scores.means(counts)["miou"] for counts in own)
    assert float(images[0]["miou"]) == pytest.approx(lowest)
    page = (out / "report.html").read_text()
    for heading in ("truth", "prediction", "errors", "Images with the lowest mIoU (5 of 5)", "Confusion"):
        assert heading in page
    assert f"mIoU {lowest:.1f}" in page
    if BROWSER is not None:
        check_page(out / "report.html", tmp_path)


def test_masks_without_any_class_and_images_that_cannot_be_read(run, tmp_path):
    for name in ("a", "b", "c"):
        for folder in ("images", "masks"):
            (tmp_path / "data" / "val" / folder).mkdir(parents=True, exist_ok=True)
            levels = np.full((20, 30), 255 if name == "a" else 2, np.uint8)
            Image.fromarray(levels).save(tmp_path / "data" / "val" / folder / f"{name}.png")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(scenes.CLASSES))
    data = ["-data_path", str(tmp_path / "data"), "-dataset", "masks"]
    flags = [str(run), "-out", str(tmp_path / "out"), *data]
    (tmp_path / "data" / "val" / "images" / "b.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png: cannot be read as an image"):
        evaluate.main(flags)
    scores = evaluate.main([*flags, "-opts", "DATA.BAD_IMAGES", "skip"])
    assert (scores["images"], scores["classes"], scores["skipped"]) == (1, 1, 1)
    (tmp_path / "data" / "val" / "images" / "c.png").unlink()
    with pytest.raises(UserError, match="no pixel of its masks has a class"):
        evaluate.main([*flags, "-opts", "DATA.BAD_IMAGES", "skip"])
    with pytest.raises(UserError, match="is a segmenter"):
        evaluate.main([*flags, "-benchmark", "a"])
