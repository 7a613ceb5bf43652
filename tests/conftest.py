"""Fixtures: tiny configurations, generated images, and the three main scripts."""

import runtime

runtime.prepare()

import time

import numpy as np
import paddle
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from config import get_config
from training.log import RunLog
from training.run import Run

paddle.set_device("cpu")
paddle.set_flags({"FLAGS_use_stride_kernel": False})

TINY = [
    "DATA.IMAGE_SIZE",
    16,
    "DATA.BATCH_SIZE",
    8,
    "DATA.NUM_WORKERS",
    0,
    "DATA.DATASET",
    "synthetic",
    "MODEL.PATCH_SIZE",
    4,
    "MODEL.NUM_CLASSES",
    4,
    "MODEL.ENCODER.EMBED_DIM",
    32,
    "MODEL.ENCODER.DEPTH",
    2,
    "MODEL.ENCODER.NUM_HEADS",
    4,
    "MODEL.DECODER.EMBED_DIM",
    16,
    "MODEL.DECODER.DEPTH",
    1,
    "MODEL.DECODER.NUM_HEADS",
    2,
    "TRAIN.NUM_EPOCHS",
    2,
    "TRAIN.WARMUP_EPOCHS",
    1,
    "REPORT",
    False,
]
MODES = {
    "pretrain": ["MODEL.TYPE", "PRETRAIN", "TRAIN.BASE_LR", 1e-2],
    "finetune": [
        "MODEL.TYPE",
        "FINETUNE",
        "MODEL.GLOBAL_POOL",
        True,
        "TRAIN.LAYER_DECAY",
        0.75,
        "TRAIN.BASE_LR",
        1e-2,
        "MODEL.DROPPATH",
        0.1,
    ],
    "linearprobe": [
        "MODEL.TYPE",
        "LINEARPROBE",
        "TRAIN.OPTIMIZER.NAME",
        "LARS",
        "TRAIN.WEIGHT_DECAY",
        0.0,
        "TRAIN.BASE_LR",
        10.0,
    ],
}


@pytest.fixture
def tiny_config():
    """Return a function: mode and overrides to a frozen config of a model with 16-pixel images."""

    def make(mode: str = "pretrain", *opts):
        return get_config(None, [*TINY, *MODES[mode], *opts])

    return make


@pytest.fixture
def tiny_run(tiny_config, tmp_path):
    """Return a function: mode and overrides to a `Run` in a fresh directory."""
    count = 0

    def make(mode: str = "pretrain", *opts, **fields) -> Run:
        nonlocal count
        count += 1
        directory = fields.pop("directory", tmp_path / f"run-{count}")
        directory.mkdir(exist_ok=True)
        return Run(tiny_config(mode, *opts), directory, RunLog(directory, quiet=True), **fields)

    return make


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Return a data set of 24 + 12 generated JPEGs in 3 classes, with list files; one name has a space."""
    root = tmp_path_factory.mktemp("data") / "a photo set"
    rng = np.random.default_rng(0)
    for split, per_class in (("train", 8), ("val", 4)):
        lines = []
        for label, name in enumerate(("cat", "dog", "red fox")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                array = rng.integers(0, 80, (20 + 2 * index, 30, 3))
                array[..., label] += 120
                Image.fromarray(array.astype(np.uint8)).save(folder / f"{index} {label}.jpg")
                lines.append(f"{split}/{name}/{index} {label}.jpg {label}\n")
        (root / f"{split}_list.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory):
    """Return a function: mode and overrides to the path of a YAML file that describes the tiny model."""
    folder = tmp_path_factory.mktemp("configs")

    def make(mode: str, *opts) -> str:
        path = folder / f"{mode}-{len(list(folder.iterdir()))}.yaml"
        path.write_text(get_config(None, [*TINY, *MODES[mode], *opts]).dump())
        return str(path)

    return make


def assert_close(actual, expected, relative: float, name: str = "") -> None:
    """Compare arrays by the largest difference, relative to the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30)
    assert error <= relative, f"{name}: relative error {error:.2e} exceeds {relative:.0e}"


@pytest.fixture
def soon():
    """Fail a test that takes half a minute, for hostile input that must be refused at once."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30


@pytest.fixture(scope="session")
def digits():
    """Return the features and labels of scikit-learn's digits: 1,000 to train, 797 to evaluate."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels, labels = data.data[order].astype(np.float32), data.target[order]
    return {"features": pixels[:1000], "labels": labels[:1000]}, {"features": pixels[1000:], "labels": labels[1000:]}


@pytest.fixture
def trained(tiny_run):
    """Return a function: mode and overrides to the directory of a run that saved its initial weights."""
    from methods import dispatch

    def make(mode="pretrain", *opts):
        run = tiny_run(mode, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0, *opts)
        dispatch.train_or_evaluate(run)
        return run.directory

    return make


@pytest.fixture
def run_dir(tiny_run):
    """Return the directory of a finetuning run that has ended, with its configuration and a line in its log."""
    from methods import dispatch

    run = tiny_run("finetune", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    (run.directory / "config.yaml").write_text(run.config.dump())
    dispatch.train_or_evaluate(run)
    run.log.record("train", 0, {"loss": 1.0})
    return run.directory
