"""Names of classes travel with the weights: labels are found by them wherever the weights are used."""

import shutil

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

import checkpoint
from config import get_config
from errors import UserError
from methods import dispatch
from methods.classifier import ClassifierEvaluator
from pipeline.loading import Batch
from port_weights import port
from tests.conftest import MODES, TINY
from tools import evaluate, export
from training.log import RunLog
from training.run import Run

COLOURS = {"a": (250, 10, 10), "b": (10, 250, 10), "c": (10, 10, 250), "d": (250, 250, 10)}


def make_photos(root, split: str, names: str, count: int = 6) -> None:
    for name in names:
        (root / split / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng(number).integers(-9, 10, (16, 16, 3))
            Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)).save(
                root / split / name / f"{number}.png"
            )


OPTS = ["DATA.DATASET", "folder", "MODEL.NUM_CLASSES", 3, "TRAIN.NUM_EPOCHS", 30, "TRAIN.WARMUP_EPOCHS", 1]
OPTS += ["TRAIN.BASE_LR", 0.1, "TRAIN.MIXUP_ALPHA", 0.0, "TRAIN.CUTMIX_ALPHA", 0.0, "TRAIN.RAND_AUGMENT", False]
OPTS += ["TRAIN.RANDOM_ERASE_PROB", 0.0, "VALIDATE_FREQ", 1000, "SAVE_FREQ", 1000, "MODEL.DROPPATH", 0.0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a directory with a run that tells a, b and c apart."""
    root = tmp_path_factory.mktemp("names")
    make_photos(root / "photos", "train", "abc")
    make_photos(root / "photos", "val", "abc")
    (root / "run").mkdir()
    config = get_config(None, [*TINY, *MODES["finetune"], *OPTS, "DATA.DATA_PATH", str(root / "photos")])
    scores = dispatch.train_or_evaluate(Run(config, root / "run", RunLog(root / "run", quiet=True)))
    assert scores["acc1"] == 100.0
    return root


def evaluated(trained, photos, *more):
    """Evaluate the run on other photos, with the recipe and not with the run's own configuration."""
    options = ["DATA.DATA_PATH", str(photos), "EVAL", True, "MODEL.PRETRAINED", str(trained / "run"), *more]
    config = get_config(None, [*TINY, *MODES["finetune"], *OPTS, *options])
    return dispatch.train_or_evaluate(Run(config, None, RunLog(None, quiet=True)))


def test_names_are_in_the_run_and_in_its_checkpoints(trained):
    for folder in (trained / "run", trained / "run" / "latest"):
        assert yaml.safe_load((folder / "config.yaml").read_text())["DATA"]["CLASS_NAMES"] == ["a", "b", "c"]
    assert checkpoint.recorded_class_names(trained / "run") == ["a", "b", "c"]


@pytest.mark.parametrize("names", ["bc", "b", "abc", "ca"])
def test_fewer_folders_are_found_by_name(trained, tmp_path, names):
    make_photos(tmp_path, "val", names)
    assert evaluated(trained, tmp_path)["acc1"] == 100.0


def test_other_folders_are_refused_by_name(trained, tmp_path):
    make_photos(tmp_path, "val", "bcd")
    with pytest.raises(UserError, match="images of classes that were not trained: d; the classes are a, b, c"):
        evaluated(trained, tmp_path)


def test_the_train_split_beside_has_no_say(trained, tmp_path):
    make_photos(tmp_path, "train", "bcd")
    make_photos(tmp_path, "val", "bc")
    assert evaluated(trained, tmp_path)["acc1"] == 100.0


def test_tools_and_exports_know_the_names(trained, tmp_path):
    make_photos(tmp_path / "photos", "val", "cb")
    scores = evaluate.main(
        [str(trained / "run"), "-out", str(tmp_path / "scores"), "-data_path", str(tmp_path / "photos")]
    )
    assert scores["acc1"] == 100.0
    rows = (tmp_path / "scores" / "classes.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["class", "b", "c"]
    make_photos(tmp_path / "others", "val", "d")
    with pytest.raises(UserError, match="not trained: d"):
        evaluate.main([str(trained / "run"), "-out", str(tmp_path / "no"), "-data_path", str(tmp_path / "others")])
    export.main([str(trained / "run"), "-out", str(tmp_path / "exported"), "-format", "paddle"])
    assert yaml.safe_load((tmp_path / "exported" / "config.yaml").read_text())["DATA"]["CLASS_NAMES"] == ["a", "b", "c"]


def test_ported_files_keep_the_names_both_ways(trained, tmp_path):
    port(trained / "run", tmp_path / "there.pth", target="official", heads=(4, None))
    port(tmp_path / "there.pth", tmp_path / "back.pdparams", heads=(4, None))
    assert checkpoint.recorded_class_names(tmp_path / "back.pdparams") == ["a", "b", "c"]
    port(trained / "run", tmp_path / "ours.safetensors")
    assert checkpoint.recorded_class_names(tmp_path / "ours.safetensors") == ["a", "b", "c"]


def test_a_head_of_other_classes_is_not_kept(trained, tmp_path, capsys):
    """As many classes, other names: the old classifier would say a where it should say b."""
    make_photos(tmp_path / "photos", "train", "bcd")
    make_photos(tmp_path / "photos", "val", "bcd")
    options = ["DATA.DATA_PATH", str(tmp_path / "photos"), "MODEL.PRETRAINED", str(trained / "run")]
    config = get_config(None, [*TINY, *MODES["finetune"], *OPTS, *options, "TRAIN.NUM_EPOCHS", 1])
    dispatch.train_or_evaluate(Run(config, None, RunLog(None)))
    assert "the classifier of these weights is for other classes" in capsys.readouterr().out


def test_a_run_goes_on_with_its_names(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run", symlinks=True)
    shutil.copytree(trained / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "train" / "a").rename(tmp_path / "photos" / "train" / "z")
    more = ["DATA.DATA_PATH", str(tmp_path / "photos"), "TRAIN.NUM_EPOCHS", 31]
    config = get_config(None, [*TINY, *MODES["finetune"], *OPTS, *more])
    run = Run(config, tmp_path / "run", RunLog(tmp_path / "run", quiet=True), (tmp_path / "run" / "latest").resolve())
    with pytest.raises(UserError, match="not trained: z"):
        dispatch.train_or_evaluate(run)


@pytest.mark.parametrize("is_one", [True, False])
def test_one_class_for_everything_is_said(tmp_path, capsys, is_one):
    config = get_config(None, [*TINY, *MODES["finetune"], "DATA.CLASS_NAMES", list("abcd")])
    evaluation = ClassifierEvaluator(Run(config, None, RunLog(None))).evaluation()
    for last in ([0.0, 2.0, 1.0, 0.0], [0.0, 2.0, 1.0, 0.0] if is_one else [3.0, 2.0, 1.0, 0.0]):
        evaluation.prepare()
        logits = paddle.to_tensor([[0.0, 2.0, 1.0, 0.0], last])
        batch = Batch((paddle.zeros([2, 3, 4, 4]),), np.arange(2), np.arange(2))
        sums = evaluation.measure(lambda images, logits=logits: logits, batch)
        scores = {name: float(value) / 2 for name, value in zip(evaluation.metrics, sums, strict=True)}
        assert evaluation.summarise(scores) == scores
    assert capsys.readouterr().out.count("warning: every image is taken for the class b: ") == 1 + is_one
