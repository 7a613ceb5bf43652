"""Every page in a browser: names with markup, formulas and 200 letters, at four widths, light and dark."""

import numpy as np
import pytest
from PIL import Image

from methods import dispatch
from tests.helpers.browser import check_page, needs_browser
from tests.helpers.small_clip import write_clip
from tools import analyse, evaluate, neighbours, predict, report, visualise, zeroshot

pytestmark = needs_browser
CLASSES = ["<blink>bold & sons", "$x^2_$", "w" * 200]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder data set with such names of classes and of files."""
    root, rng = tmp_path_factory.mktemp("set"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for file in ("<blink>&.png", "$1$.png", "f" * 190 + ".png"):
                Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)).save(root / split / name / file)
    return root


@pytest.fixture
def run(tiny_run, photos):
    """Return a function: mode to the directory of a run of one epoch on that set."""

    def make(mode, *opts):
        data = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(photos), "DATA.BATCH_SIZE", 4, "MODEL.NUM_CLASSES", 3]
        made = tiny_run(mode, *data, "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "REPORT", True, *opts)
        (made.directory / "config.yaml").write_text(made.config.dump())
        dispatch.train_or_evaluate(made)
        return made.directory

    return make


def test_pages_of_a_classifier(run, photos, tmp_path):
    classifier, other = run("finetune"), run("finetune", "TRAIN.BASE_LR", 1e-2)
    val = str(photos / "val")
    evaluate.main([str(classifier), "-out", str(tmp_path / "evaluated")])
    predict.main(
        [str(classifier), val, "-html", str(tmp_path / "predicted.html"), "-out", str(tmp_path / "predicted.csv")]
    )
    pages = [tmp_path / "evaluated" / "report.html", tmp_path / "predicted.html"]
    pages.append(report.main([str(classifier)]))
    pages.append(report.main([str(classifier), str(other), "-out", str(tmp_path / "both.html")]))
    for page in pages:
        assert "&lt;blink&gt;" in page.read_text(encoding="utf-8") or page.name == "both.html", page
        check_page(page, tmp_path)


def test_pages_of_an_encoder(run, photos, tmp_path):
    encoder = run("pretrain")
    flags = ["-mask_ratio", "0.25", "0.5", "0.75", "0.9", "-attention"]
    pages = [
        visualise.main([str(encoder), str(photos / "val"), *flags, "-num", "3", "-out", str(tmp_path / "seen.html")]),
        neighbours.main([str(encoder), "-num", "3", "-k", "3", "-out", str(tmp_path / "near.html")]),
        report.main([str(encoder)]),
    ]
    analyse.main([str(encoder), "-num", "9", "-out", str(tmp_path / "analysed")])
    for page in (*pages, tmp_path / "analysed" / "report.html"):
        check_page(page, tmp_path)


def test_pages_of_zero_shot_classification(photos, tmp_path):
    clip = write_clip(tmp_path / "clip")
    zeroshot.main([str(clip), "-data_path", str(photos), "-language", "en", "zh", "-out", str(tmp_path / "asked")])
    for page in (tmp_path / "asked" / "languages.html", tmp_path / "asked" / "zh" / "report.html"):
        check_page(page, tmp_path)
