"""Encoders of runs: settings that do not fit the weights."""

import pytest

from config import get_config
from errors import UserError
from methods.load_models import load_encoder
from tests.conftest import MODES, TINY
from tests.helpers.saved_runs import fit_pretrain

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("DATA.IMAGE_CHANNELS", 1, "set DATA.IMAGE_CHANNELS 3, with as many numbers"),
        ("MODEL.PATCH_SIZE", 8, "set MODEL.PATCH_SIZE 4"),
    ],
)
def test_weights_of_other_images_name_the_key(tiny_run, tmp_path, key, value, words):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    fit_pretrain(run)
    more = ["DATA.IMAGENET_MEAN", [0.5], "DATA.IMAGENET_STD", [0.5]] if "CHANNELS" in key else []
    config = get_config(None, [*TINY, *MODES["finetune"], key, value, *more])
    with pytest.raises(UserError, match=words):
        load_encoder(run.directory, config)
