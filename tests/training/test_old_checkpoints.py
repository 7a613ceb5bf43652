"""Checkpoints that earlier versions wrote are resumed, finetuned and evaluated.

tests/golden/checkpoints has runs written by Paddle 3.3.1 after 2 of 4 updates; `undisturbed.jsonl` is the log of the
run that was not interrupted. The first three are of a version whose checkpoints had no count of their own.
"""

import shutil

import pytest

import main_multi_gpu_finetune
import main_multi_gpu_linearprobe
import main_multi_gpu_pretrain
from clip import load_clip
from methods import load_models
from runtime import ROOT
from storage.files import read_records
from tests import traces

RUNS = ROOT / "tests" / "golden" / "checkpoints"
MAINS = {
    "pretrain": main_multi_gpu_pretrain.main,
    "finetune": main_multi_gpu_finetune.main,
    "linearprobe": main_multi_gpu_linearprobe.main,
    **dict.fromkeys(("moco", "contrastive_tuning", "image_text"), main_multi_gpu_pretrain.main),
}
pytestmark = pytest.mark.quick


@pytest.fixture
def runs(tmp_path):
    shutil.copytree(RUNS, tmp_path / "runs")
    return tmp_path / "runs"


def numbers(records):
    return [
        (record["event"], record["step"], name, value)
        for record in records
        for name, value in record.items()
        if name in ("loss", "lr", "acc1") and record["step"] > 2
    ]


@pytest.mark.parametrize("mode", MAINS)
def test_an_old_run_goes_on_as_it_would_have(runs, mode, tmp_path):
    flags = []
    if mode == "image_text":
        traces.make_data(tmp_path)
        flags = ["-opts", "LIT.TOKENIZER", str(runs / mode / "tokenizer.model")]
        flags += ["DATA.DATA_PATH", str(tmp_path / "captions")]
    MAINS[mode](["-resume", str(runs / mode), *flags])
    found, expected = (numbers(read_records(runs / mode / f"{name}.jsonl")) for name in ("log", "undisturbed"))
    assert [entry[:3] for entry in found] == [entry[:3] for entry in expected]
    # Layer norms are added up in another order than when these were written. A neighbour is a choice, see test_traces.
    relative = 0.05 if mode == "contrastive_tuning" else 1e-4
    assert [entry[3] for entry in found] == pytest.approx([entry[3] for entry in expected], rel=relative)
    assert {path.name for path in (runs / mode).glob("step-*")} == {"step-00000002", "step-00000004"}


@pytest.mark.parametrize("mode", ["finetune", "linearprobe"])
def test_an_old_run_is_evaluated_and_read(runs, mode, tmp_path):
    run = runs / mode
    config = run / "step-00000002" / "config.yaml"
    scores = MAINS[mode](
        ["-cfg", str(config), "-eval", "-pretrained", str(run / "step-00000002"), "-output", str(tmp_path)]
    )
    assert scores["acc1"] == 25.0
    assert load_models.load_encoder(run / "step-00000002")[0].classifier is not None


def test_an_old_autoencoder_is_finetuned(runs, tmp_path):
    config, weights = (runs / name / "step-00000002" for name in ("finetune", "pretrain"))
    flags = ["-cfg", str(config / "config.yaml"), "-pretrained", str(weights), "-output", str(tmp_path / "new")]
    assert MAINS["finetune"]([*flags, "-opts", "RUN", "finetuned"])["loss"] > 0


@pytest.mark.parametrize("mode", ["moco", "contrastive_tuning", "image_text"])
def test_the_encoder_of_an_old_run_is_read(runs, mode):
    encoder, config = load_models.load_encoder(runs / mode / "step-00000002")
    assert encoder.cls_token.shape[-1] == config.MODEL.ENCODER.EMBED_DIM


def test_an_old_clip_model_is_read(runs):
    clip = load_clip(runs / "image_text" / "step-00000002", runs / "image_text" / "tokenizer.model")
    assert clip.encode_texts(["a cat"]).shape == [1, 12]
