"""Both stages through the main script, on generated images."""

import pickle

import numpy as np
import paddle
import pytest

import main_multi_gpu_linearprobe
import main_multi_gpu_pretrain
from config import get_config
from errors import UserError
from launch.run_directory import find
from methods import contrastive_tuning
from methods.nnclr_head import NNCLRHead
from port_weights import port
from storage import weight_files
from storage.run_files import EMA_FILE, EXTRA_FILE, MODEL_FILE
from tests.conftest import MODES, TINY
from tests.helpers import script_runs
from tests.methods.test_toy_method import tensors
from tools import knn
from training.log import RunLog, read_log
from training.run import Run

SMALL = ["CONTRAST.PROJECTOR_DIMS", [16, 16, 8], "CONTRAST.PREDICTOR_DIM", 16, "CONTRAST.QUEUE_SIZE", 100]
OPTS = [*TINY, "MODEL.TYPE", "CONTRASTIVE_TUNING", *SMALL, "DATA.DROP_LAST", True, "DATA.BATCH_SIZE", 64]
OPTS += ["TRAIN.NUM_EPOCHS", 1, "REPORT_FREQ", 1, "TRAIN.BASE_LR", 1e-3, "SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9]
TUNING = ["CONTRAST.STAGE", "tuning", "CONTRAST.TOPK", 5, "CONTRAST.MOMENTUM", 0.9, "TRAIN.EMA_DECAY", 0.9]
TUNING += ["TRAIN.LAYER_DECAY", 0.65, "CONTRAST.HEAD_BASE_LR", 5e-3, "CONTRAST.AUGMENTATION", "byol"]


def train(folder, name, *flags, opts=()):
    return script_runs.train(main_multi_gpu_pretrain.main, folder, name, [*OPTS, *opts], *flags)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Return the runs of an autoencoder, the head stage, and the tuning stage."""
    folder = tmp_path_factory.mktemp("stages")
    cfg = folder / "mae.yaml"
    cfg.write_text(get_config(None, [*TINY, *MODES["pretrain"], "DATA.BATCH_SIZE", 128]).dump())
    main_multi_gpu_pretrain.main(["-cfg", str(cfg), "-output", str(folder), "-opts", "RUN", "mae"])
    head = train(folder, "head", "-pretrained", str(folder / "mae"))
    return folder / "mae", head, train(folder, "tuning", "-pretrained", str(head), opts=TUNING)


@pytest.mark.quick
def test_the_head_stage_leaves_the_encoder_as_it_was(stages):
    mae, head, _ = stages
    before, after = (weight_files.read(find(run) / MODEL_FILE).tensors for run in (mae, head))
    assert set(after) < set(before)
    assert all(np.array_equal(before[name].read(), tensor.read()) for name, tensor in after.items())
    records = [record for record in read_log(head) if record["event"] == "train"]
    assert {"loss_view0", "loss_view1", "nn_accuracy", "queue_fill", "projection_std"} <= set(records[0])
    assert records[-1]["queue_fill"] == 1.0
    assert records[0]["queue_fill"] == 0.0
    assert all(abs(r["loss"] - (r["loss_view0"] + r["loss_view1"]) / 2) < 1e-5 for r in records)
    assert 0.0 < records[-1]["projection_std"] < 1.5
    text = (head / "log.txt").read_text()
    assert "the encoder is frozen, all 2 blocks; the head trains" in text


@pytest.mark.quick
def test_tuning_changes_the_upper_half_and_keeps_the_head_that_it_was_given(stages):
    _, head, tuning = stages
    before, after = (tensors(find(run)) for run in (head, tuning))
    frozen, changed = [], []
    for name in (name for name in before if name.startswith(MODEL_FILE)):
        (frozen if np.array_equal(before[name], after[name]) else changed).append(name.partition("/")[2])
    assert all(name.startswith(("encoder.layers.1.", "encoder.norm.")) for name in changed)
    assert {"cls_token", "encoder_position_embedding", "encoder.layers.0.attn.qkv.weight"} <= set(frozen)
    assert len(changed) == 14
    assert f"{EXTRA_FILE}/head.target_projector.0.weight" in after
    assert not [name for name in before if "target_projector" in name]
    text = (tuning / "log.txt").read_text()
    assert "loaded the head of" in text
    assert "100 in the queue" in text
    assert "embeddings and blocks 1 to 1 of 2 are frozen" in text
    assert "head 0.005" in text


@pytest.mark.quick
@pytest.mark.parametrize("stage", ["head", "tuning"])
def test_a_stopped_stage_is_bit_identical(stages, tmp_path, stage):
    mae, head, tuning = stages
    run, given, opts = (head, mae, ()) if stage == "head" else (tuning, head, TUNING)
    other = train(tmp_path, "run", "-pretrained", str(given), opts=opts)
    script_runs.assert_same(other, run)
    script_runs.stop_after_step(other, tmp_path)
    script_runs.assert_same(train(tmp_path, "again", "-resume", "auto", opts=opts), run)


@pytest.mark.quick
def test_the_newest_run_of_a_stage_is_one_of_this_stage(stages, tmp_path):
    """Without a name, -resume auto would take the head stage's run for the tuning stage's."""
    mae, head, _ = stages
    runs = {}
    for stage, given, opts in (("head", mae, ()), ("tuning", head, TUNING)):
        cfg = script_runs.write_config(tmp_path, stage, [*OPTS, *opts])
        flags = ["-cfg", str(cfg), "-output", str(tmp_path / "runs"), "-pretrained", str(given), "-resume", "auto"]
        for _ in range(2):
            main_multi_gpu_pretrain.main(flags)
        runs[stage] = sorted(set((tmp_path / "runs").iterdir()) - {run for found in runs.values() for run in found})
    assert [len(found) for found in runs.values()] == [1, 1]
    assert runs["head"][0].name.startswith("contrastive_tuning_head-2")
    assert runs["tuning"][0].name.startswith("contrastive_tuning-2")


@pytest.mark.quick
def test_the_result_is_an_ordinary_encoder(stages, tmp_path, tiny_yaml):
    _, _, tuning = stages
    averaged = weight_files.read(find(tuning) / EMA_FILE).tensors
    assert weight_files.resolve(tuning).name == EMA_FILE
    cfg = tiny_yaml("linearprobe", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 256)
    main_multi_gpu_linearprobe.main(["-cfg", cfg, "-pretrained", str(tuning), "-output", str(tmp_path)])
    (probe,) = tmp_path.glob("linearprobe-*")
    probed = weight_files.read(find(probe) / MODEL_FILE).tensors
    assert all(np.array_equal(probed[name].read(), tensor.read()) for name, tensor in averaged.items())
    assert knn.main([str(tuning), "-k", "5"])["acc1, k=5"] > 25.0
    for target, name in (("official", "a.pth"), ("timm", "b.safetensors"), ("transformers", "folder")):
        port(tuning, tmp_path / name, target=target)
        back = port(tmp_path / name, tmp_path / f"{target}.pdparams", heads=(4, None))
        ported = weight_files.read(tmp_path / f"{target}.pdparams").tensors
        assert back.architecture.content.startswith("encoder only")
        assert all(np.array_equal(ported[name].read(), tensor.read()) for name, tensor in averaged.items())


# ViT-B, stage 2: multiplier of the learning rate of each block that trains, the last norm, and the head (5e-3 / 1e-3).
BLOCKS = {6: 0.0754188906, 7: 0.1160290625, 8: 0.1785062500, 9: 0.2746250000, 10: 0.4225, 11: 0.65}
NORM, HEAD = 1.0, 5.0
# Decay of the matrices; biases and norms have none.
ENCODER_DECAY, HEAD_DECAY = 0.05, 1e-5
MATRICES = ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")
PROJECTOR, PREDICTOR = ((0, 3, 6), (1, 4, 7)), ((0, 3), (1,))  # linear layers, batch norms


def expected_table() -> dict[str, tuple[float, float]]:
    """Return (multiplier, decay) of every parameter that trains."""
    table = {}
    for block, rate in BLOCKS.items():
        prefix = f"encoder.encoder.layers.{block}"
        table |= {f"{prefix}.{name}.weight": (rate, ENCODER_DECAY) for name in MATRICES}
        table |= {f"{prefix}.{name}.bias": (rate, 0.0) for name in (*MATRICES, "attn_norm", "mlp_norm")}
        table |= {f"{prefix}.{name}.weight": (rate, 0.0) for name in ("attn_norm", "mlp_norm")}
    table |= {f"encoder.encoder.norm.{name}": (NORM, 0.0) for name in ("weight", "bias")}
    for part, (linear, norms) in (("projector", PROJECTOR), ("predictor", PREDICTOR)):
        table |= {f"head.{part}.{number}.weight": (HEAD, HEAD_DECAY) for number in linear}
        table |= {f"head.{part}.{number}.{name}": (HEAD, 0.0) for number in norms for name in ("weight", "bias")}
    return table


@pytest.mark.quick
def test_rates_decays_and_frozen_parts_are_those_of_the_paper():
    """The upper half of ViT-B's 12 blocks trains; widths do not matter here."""
    config = get_config(None, [*OPTS, *TUNING, "MODEL.ENCODER.DEPTH", 12])
    run = Run(config, None, RunLog(None, quiet=True), resume_from="no weights are loaded")
    task = contrastive_tuning.build(run)
    _, groups = contrastive_tuning._parameter_groups(config, task.model)
    found = {id(p): (group["learning_rate"], group["weight_decay"]) for group in groups for p in group["params"]}
    names = dict(task.model.named_parameters())
    got = {name: found[id(parameter)] for name, parameter in names.items() if id(parameter) in found}
    expected = expected_table()
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        assert got[name] == pytest.approx(values, rel=1e-8), name
    assert set(got) == {name for name, parameter in names.items() if not parameter.stop_gradient}
    frozen = names.keys() - got.keys()
    assert {
        "encoder.cls_token",
        "encoder.encoder_position_embedding",
        "encoder.encoder.layers.5.mlp.fc2.weight",
    } <= frozen
    assert "head.target_projector.0.weight" in frozen
    task.model.train()
    modes = [layer.training for layer in task.model.encoder.encoder.layers]
    assert modes == [False] * 6 + [True] * 6
    assert task.model.head.training


@pytest.mark.quick
@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TRAIN.ACCUM_ITER", 2], "TRAIN.ACCUM_ITER=2: the loss .* set it to 1"),
        (["DATA.DROP_LAST", False], "DATA.DROP_LAST=False: .* a smaller last batch"),
        (["DATA.BATCH_SIZE", 1], "a micro-step of one image"),
        (
            ["DATA.IMAGE_CHANNELS", 4, "DATA.IMAGENET_MEAN", [0.5] * 4, "DATA.IMAGENET_STD", [0.5] * 4]
            + ["CONTRAST.AUGMENTATION", "colour"],
            "augmentation colour changes colours, and is for grey and RGB",
        ),
        (["MODEL.GLOBAL_POOL", True], "use MODEL.POOL_AFTER_NORM"),
        (["CONTRAST.PROJECTOR_DIMS", [16, 0]], "integers from 1"),
        (["CONTRAST.TOPK", 101], "CONTRAST.TOPK=101: exceeds CONTRAST.QUEUE_SIZE=100"),
        ([*TUNING, "CONTRAST.FROZEN_BLOCKS", 2], "tuning needs a block that trains, and there are 2"),
        ([*TUNING, "TRAIN.BASE_LR", 0.0, "CONTRAST.HEAD_BASE_LR", 1e-3], "TRAIN.BASE_LR=0.0: must be above 0"),
        (TUNING, "holds no head .*train one first, with CONTRAST.STAGE head"),
        (["MODEL.ENCODER.EMBED_DIM", 64], "the file's encoder is 32 wide and 2 deep, the model's 64 and 2"),
    ],
)
def test_what_cannot_work_is_refused(stages, tmp_path, opts, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, "run", "-pretrained", str(stages[0]), opts=opts)


@pytest.mark.quick
def test_a_head_of_another_width_is_refused(stages, tmp_path):
    opts = [*TUNING, "CONTRAST.PREDICTOR_DIM", 32]
    with pytest.raises(ValueError, match=r"predictor.0.weight \[8, 16\] in the file, \[8, 32\] here"):
        train(tmp_path, "run", "-pretrained", str(stages[1]), opts=opts)


@pytest.mark.quick
def test_without_labels_there_is_no_accuracy(stages, tmp_path, image_folder):
    flags = ["-pretrained", str(stages[0]), "-dataset", "folder", "-data_path", str(image_folder / "train")]
    run = train(tmp_path, "run", *flags, opts=["DATA.BATCH_SIZE", 8, "CONTRAST.QUEUE_SIZE", 30])
    records = [record for record in read_log(run) if record["event"] == "train"]
    assert "nn_accuracy" not in records[0]
    assert records[-1]["loss"] > 0
    assert "queue of 30 images is larger than the data set, which has 24" in (run / "log.txt").read_text()


@pytest.mark.quick
def test_the_reports_have_the_curves(stages, tmp_path):
    from tools import report

    page = report.main([str(stages[2]), "-out", str(tmp_path / "report.html")]).read_text()
    for name in ("nn_accuracy (train)", "queue_fill (train)", "projection_std (train)", "lr_head (train)"):
        assert name in page


# A batch norm takes a shift out of what it reads, so these have no gradient, or are zero, in exact arithmetic.
SHIFTS = ("encoder.norm.bias", "projector.7.bias", "predictor.1._mean")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["head", "tuning"])
def test_two_ranks_are_one_with_the_joint_batch(stages, tmp_path, stage):
    mae, head, _ = stages
    given, opts = (mae, []) if stage == "head" else (head, [*TUNING, "CONTRAST.TOPK", 0])
    # With a large epsilon an update is proportional to the gradient; else Adam turns roundings of tiny ones into steps.
    opts = [*opts, "TRAIN.WARMUP_EPOCHS", 0, "TRAIN.OPTIMIZER.EPS", 1.0, "TRAIN.BASE_LR", 0.1]
    # More contrast lets the features of images differ more; the batch norms divide roundings by that.
    opts += ["MODEL.POOL_AFTER_NORM", True, "DATA.IMAGENET_STD", [0.05] * 3]
    one = train(tmp_path, "one", "-pretrained", str(given), opts=opts)
    flags = ["-pretrained", str(given)]
    script_runs.compare_two_ranks(one, [*OPTS, *opts, "DATA.BATCH_SIZE", 32], *flags, ignore=SHIFTS)


@pytest.mark.quick
def test_recomputation_of_the_upper_half_changes_no_bit():
    """The encoder is in evaluation mode, its upper blocks are not: these are computed again."""
    gradients, passes = [], []
    for recomputes in (False, True):
        config = get_config(None, [*OPTS, *TUNING, "CONTRAST.TOPK", 0, "TRAIN.RECOMPUTE", recomputes])
        run = Run(config, None, RunLog(None, quiet=True), resume_from="no weights are loaded")
        model = contrastive_tuning.build(run).model
        model.train()
        counts = [0, 0]
        for number, layer in enumerate(model.encoder.encoder.layers):
            layer.register_forward_pre_hook(
                lambda *args, number=number, counts=counts: counts.__setitem__(number, counts[number] + 1)
            )
        views = np.random.default_rng(0).standard_normal((2, 8, 3, 16, 16)).astype(np.float32)
        loss, _ = model(*map(paddle.to_tensor, views), paddle.arange(8, dtype="int64"))
        loss.backward()
        passes.append(counts)
        gradients.append({name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None})
    assert passes == [[1, 1], [1, 2]]
    assert all(np.array_equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.quick
def test_a_head_of_other_types_is_one_line(tmp_path):
    head = NNCLRHead(8, (16, 16, 8), 16, 32)
    state = {f"head.{name}": value.numpy() for name, value in head.state_dict().items()}
    state["head.queue_id"] = state["head.queue_id"].astype(np.float32)
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps({"w": np.zeros(1, np.float32)}))
    (tmp_path / "extra.pdparams").write_bytes(pickle.dumps(state))
    with pytest.raises(UserError, match=r"the head differs: queue_id \[32\] in the file, \[32\] of int64 here"):
        contrastive_tuning.load_head(head, str(tmp_path / "model.pdparams"))
