"""Few photos of one's own: the README's commands learn from them, or say why they cannot."""

import numpy as np
import pytest
from PIL import Image

import main_multi_gpu_pretrain
from config import get_config
from tests.helpers.recipes import recipe
from tests.test_scripts import sh
from training import loaders
from training.log import read_log


def make_photos(root, seed: int) -> None:
    """Write 60 photos of three classes, 14 to train and 6 to evaluate each: stripes of another direction and colour."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:40, :40]
    for label, name in enumerate(("oak", "pine", "red maple")):
        wave = (rows, columns, rows + columns)[label]
        for number in range(20):
            folder = root / ("train" if number < 14 else "val") / name
            folder.mkdir(parents=True, exist_ok=True)
            stripes = np.sin(0.6 * wave + rng.uniform(0, 6))[..., None] * rng.uniform(20, 60, 3)
            pixels = 120 + stripes + rng.normal(0, 20, (40, 40, 3)) + 25 * (np.arange(3) == label)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")


@pytest.mark.slow
def test_the_readmes_commands_learn_from_60_photos(tmp_path):
    make_photos(tmp_path / "photos", 0)
    places = {"DATA_PATH": str(tmp_path / "photos"), "OUTPUT": str(tmp_path / "out"), "DEVICE": "cpu"}
    done = sh("run_photos.sh", "REPORT", "False", "DATA.NUM_WORKERS", "0", "TRAIN.NUM_EPOCHS", "30", **places)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = [record["acc1"] for record in read_log(tmp_path / "out" / "labels") if record["event"] == "eval"]
    assert scores[-1] > 60.0


@pytest.mark.quick
def test_few_updates_are_a_warning_with_numbers(tmp_path, capsys):
    make_photos(tmp_path, 0)
    cfg, settings = str(recipe("vit_micro_patch4_32_pretrain")), ["TRAIN.NUM_EPOCHS", "10", "DATA.BATCH_FIT", "none"]
    flags = ["-cfg", cfg, "-dataset", "folder", "-data_path", str(tmp_path), "-device", "cpu", "-dry_run"]
    main_multi_gpu_pretrain.main([*flags, "-opts", *settings])
    out = capsys.readouterr().out
    assert "warning: 10 updates are few (42 images, 128 per update, 10 epochs)" in out
    assert "set TRAIN.NUM_EPOCHS 200 or more" in out


@pytest.mark.quick
@pytest.mark.parametrize(
    ("num_images", "more", "expected"),
    [
        (42, [], 8),
        (100, [], 16),
        (128, [], 128),  # as many as an update takes
        (10_000, [], 128),
        (10_000, ["DATA.BATCH_FIT", "auto"], 128),
        (400, ["DATA.BATCH_FIT", "auto"], 64),
        (42, ["DATA.BATCH_FIT", "none"], 128),
        (42, ["DATA.DROP_LAST", True], 8),  # the images are too few for one update
        (5, [], 8),
    ],
)
def test_the_batch_fits_few_images(num_images, more, expected):
    lines = []
    config = get_config(recipe("vit_micro_patch4_32_finetune"), more)
    found = loaders.fit_batch(config, num_images, lines.append)
    assert expected == found.DATA.BATCH_SIZE
    assert len(lines) == (expected != 128)
    # The rate of an update goes with the square root of its images.
    peak = found.TRAIN.BASE_LR * expected / config.TRAIN.BASE_LR / 128
    assert peak == pytest.approx((expected / 128) ** 0.5)
    assert (config.DATA.DROP_LAST and expected == 128) == found.DATA.DROP_LAST
    assert loaders.fit_batch(found, num_images, lines.append) == found, "a resumed run keeps it"
    assert loaders.fit_batch(config, num_images, lines.append, resumed=128) == config, "as one of an older version does"


@pytest.mark.quick
def test_fewer_images_do_not_make_larger_micro_steps():
    options = ["DATA.BATCH_SIZE", 48, "TRAIN.ACCUM_ITER", None, "TRAIN.TOTAL_BATCH_SIZE", 4096]
    found = loaders.fit_batch(get_config(recipe("vit_micro_patch4_32_finetune"), options), 1000, print)
    assert (found.DATA.BATCH_SIZE, found.TRAIN.ACCUM_ITER) == (32, 4)
