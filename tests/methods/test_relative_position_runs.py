"""A finetuning with relative position biases and layer scales, from start to end, and everything that reads it."""

import numpy as np
import paddle
import pytest

import main_multi_gpu_finetune
import main_multi_gpu_linearprobe
from errors import UserError
from methods import dispatch, load_models
from tests.conftest import MODES, TINY
from tests.helpers import script_runs
from tests.helpers.small_models import make_mae
from tools import cluster, evaluate, export, features, knn, report, visualise

pytestmark = pytest.mark.quick
OPTS = [*TINY, *MODES["finetune"], "DATA.BATCH_SIZE", 128, "TRAIN.NUM_EPOCHS", 2, "SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9]
OPTS += ["MODEL.ENCODER.LAYER_SCALE", 0.1]


def train(folder, name, kind, *flags):
    settings = [*OPTS, "MODEL.ENCODER.RELATIVE_POSITION_BIAS", kind]
    return script_runs.train(main_multi_gpu_finetune.main, folder, name, settings, *flags)


@pytest.fixture(scope="module", params=[True, "shared"], ids=["per block", "shared"])
def trained(request, tmp_path_factory):
    return request.param, train(tmp_path_factory.mktemp("rpe"), "run", request.param)


def test_a_stopped_run_is_bit_identical(trained, tmp_path):
    kind, run = trained
    script_runs.stop_after_step(run, tmp_path)
    found = script_runs.assert_same(train(tmp_path, "again", kind, "-resume", "auto"), run)
    tables = [value for name, value in found.items() if "model" in name and name.endswith("position_bias.table")]
    assert len(tables) == (1 if kind == "shared" else 2)
    assert all(np.abs(table).max() > 1e-4 for table in tables)


def test_tools_read_it(trained, tmp_path, tiny_yaml):
    _, run = trained
    assert knn.main([str(run), "-k", "5"])["acc1, k=5"] > 20.0
    out = str(tmp_path / "features.npz")
    features.main([str(run), "-out", out])
    assert cluster.main([str(run), "-clusters", "4"])
    assert evaluate.main([str(run), "-out", str(tmp_path / "scores")])["acc1"] > 20.0
    visualise.main([str(run), "-attention", "-num", "2", "-out", str(tmp_path / "a.png")])
    assert report.main([str(run), "-out", str(tmp_path / "report.html")]).is_file()
    assert max(export.main([str(run), "-out", str(tmp_path / "exported"), "-format", "paddle"]).values()) < 1e-5
    model, _ = load_models.load_classifier(run)
    assert float(model.encoder.layers[0].gamma_1.abs().max()) > 0
    probe = tiny_yaml("linearprobe", "MODEL.GLOBAL_POOL", True, "DATA.BATCH_SIZE", 256)
    with pytest.raises(
        ValueError, match="set MODEL.ENCODER.LAYER_SCALE and MODEL.ENCODER.RELATIVE_POSITION_BIAS as the file's run"
    ):
        main_multi_gpu_linearprobe.main(["-cfg", probe, "-pretrained", str(run), "-output", str(tmp_path)])


def test_a_probe_has_no_untrained_parts(tiny_run, tmp_path):
    """They would stay as they were drawn: frozen factors of 0.001 would shrink every branch."""
    paddle.save(make_mae((16, 16)).state_dict(), str(tmp_path / "mae.pdparams"))
    sizes = ["MODEL.ENCODER.EMBED_DIM", 16, "MODEL.ENCODER.DEPTH", 1, "MODEL.ENCODER.NUM_HEADS", 2]
    sizes += ["MODEL.PRETRAINED", str(tmp_path / "mae"), "MODEL.ENCODER.LAYER_SCALE", 0.001]
    with pytest.raises(UserError, match="set MODEL.ENCODER.LAYER_SCALE as the file's run has it"):
        dispatch.build_task(tiny_run("linearprobe", *sizes))
    dispatch.build_task(tiny_run("finetune", *sizes))
