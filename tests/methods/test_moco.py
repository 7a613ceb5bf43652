"""MoCo v3 against an independent implementation in torch, over three updates, and through the main script."""

import math

import numpy as np
import paddle
import pytest
from paddle import nn

import main_multi_gpu_finetune
import main_multi_gpu_pretrain
from methods import dispatch, moco
from methods.moco import MoCoV3
from storage.run_files import EXTRA_FILE
from tests.conftest import TINY, assert_close
from tests.helpers import script_runs
from training.log import read_log

PIXELS, DIM, HIDDEN, OUT, BATCH = 12, 10, 16, 8, 64
# Sums over a batch of 64 in another order, through six batch norms: 1e-5 of each tensor's largest value.
RELATIVE = 1e-5
OPTS = [*TINY, "MODEL.TYPE", "MOCO", "MOCO.HIDDEN_DIM", 16, "MOCO.OUT_DIM", 8, "DATA.DROP_LAST", True]
OPTS += ["DATA.BATCH_SIZE", 64, "TRAIN.NUM_EPOCHS", 1, "REPORT_FREQ", 1, "SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9]


def torch_parts(torch, model):
    """Return the networks in torch: encoders are one linear layer here, as the heads are what is compared."""

    def mlp(widths):
        layers = []
        for index in range(len(widths) - 1):
            last = index == len(widths) - 2
            layers += [torch.nn.Linear(widths[index], widths[index + 1], bias=False)]
            layers += [torch.nn.BatchNorm1d(widths[index + 1], affine=not last)] + ([] if last else [torch.nn.ReLU()])
        return torch.nn.Sequential(*layers)

    parts = {
        "base_encoder.encoder": torch.nn.Linear(PIXELS, DIM),
        "base_encoder.projector": mlp((DIM, HIDDEN, HIDDEN, OUT)),
        "momentum_encoder.encoder": torch.nn.Linear(PIXELS, DIM),
        "momentum_encoder.projector": mlp((DIM, HIDDEN, HIDDEN, OUT)),
        "predictor": mlp((OUT, HIDDEN, OUT)),
    }
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    for part, network in parts.items():
        for name, value in network.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                array = state[f"{part}.{ours(name)}"]
                value.copy_(torch.from_numpy(array.T.copy() if array.ndim == 2 else array))
    return parts


def ours(name: str) -> str:
    return name.replace("running_mean", "_mean").replace("running_var", "_variance")


def torch_loss(torch, parts, views):
    functional = torch.nn.functional
    queries, keys = [], []
    for view in views:
        projected = parts["base_encoder.projector"](parts["base_encoder.encoder"](view))
        queries.append(functional.normalize(parts["predictor"](projected)))
        with torch.no_grad():
            key = parts["momentum_encoder.projector"](parts["momentum_encoder.encoder"](view))
            keys.append(functional.normalize(key))
    labels, loss = torch.arange(len(views[0])), 0.0
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        loss = loss + functional.cross_entropy(query @ key.T / 0.2, labels) * 0.4
    return loss


def follow(torch, parts, momentum):
    with torch.no_grad():
        for part in ("encoder", "projector"):
            own = dict(parts[f"base_encoder.{part}"].named_parameters())
            for name, value in parts[f"momentum_encoder.{part}"].named_parameters():
                value.copy_(momentum * value + (1 - momentum) * own[name])


def compare(model, parts):
    """Compare parameters, statistics and gradients."""
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    state |= {f"{name} gradient": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    assert not [name for name in state if name.startswith("momentum") and name.endswith("gradient")]
    for part, network in parts.items():
        theirs = {ours(name): value for name, value in network.state_dict().items() if "num_batches" not in name}
        theirs |= {f"{name} gradient": p.grad for name, p in network.named_parameters() if p.grad is not None}
        for name, value in theirs.items():
            full, array = f"{part}.{name}", value.numpy().T if value.ndim == 2 else value.numpy()
            if full.removesuffix(" gradient") in SHIFTS:
                assert np.abs(state[full] - array).max() < 1e-6, full
            else:
                assert_close(state[full], array, RELATIVE, full)


def test_three_updates_are_those_of_torch():
    torch = pytest.importorskip("torch")
    paddle.seed(1)
    model = MoCoV3(nn.Linear(PIXELS, DIM), nn.Linear(PIXELS, DIM), DIM, HIDDEN, OUT, temperature=0.2)
    model.train()
    parts, rate = torch_parts(torch, model), 0.1
    for step in range(3):
        rng = np.random.default_rng(step)
        views = [rng.standard_normal((BATCH, PIXELS)).astype(np.float32) for _ in range(2)]
        momentum = moco.momentum_at(step, 10, 0.9)
        model.update_momentum(momentum)
        follow(torch, parts, momentum)
        loss, _ = model(*map(paddle.to_tensor, views))
        loss.backward()
        expected = torch_loss(torch, parts, list(map(torch.from_numpy, views)))
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=RELATIVE)
        compare(model, parts)
        with paddle.no_grad():
            for parameter in filter(lambda p: p.grad is not None, model.parameters()):
                parameter.set_value(parameter - rate * parameter.grad)
        model.clear_gradients()
        for network in parts.values():
            for value in filter(lambda p: p.grad is not None, network.parameters()):
                value.data -= rate * value.grad
            network.zero_grad()


# A batch norm takes out a shift of what it reads; so these have no gradient, or are zero, in exact arithmetic.
SHIFTS = (
    "base_encoder.encoder.bias",
    "momentum_encoder.encoder.bias",
    "predictor.1._mean",
    "base_encoder.encoder.bias",
)


@pytest.mark.quick
def test_momentum_grows_to_one_by_half_a_cosine():
    assert moco.momentum_at(0, 100, 0.99) == pytest.approx(0.99)
    assert moco.momentum_at(50, 100, 0.99) == pytest.approx(0.995)
    assert moco.momentum_at(100, 100, 0.99) == 1.0


@pytest.mark.quick
@pytest.mark.parametrize("frozen", [True, False])
def test_parameter_groups_and_initialisation(tiny_run, frozen):
    run = tiny_run("pretrain", *OPTS[len(TINY) :], "MOCO.FREEZE_PATCH_EMBED", frozen)
    task = dispatch.build_task(run)
    encoder = task.network
    assert encoder.encoder_position_embedding.stop_gradient
    assert encoder.patch_embedding.patch_embedding.weight.stop_gradient == frozen
    bound = math.sqrt(6 / (3 * 4 * 4 + 32))
    largest = float(encoder.patch_embedding.patch_embedding.weight.abs().max())
    assert 0.8 * bound < largest <= bound
    qkv = float(encoder.encoder.layers[0].attn.qkv.weight.abs().max())
    assert 0.9 * math.sqrt(6 / 64) < qkv <= math.sqrt(6 / 64)
    assert float(encoder.cls_token.abs().max()) < 1e-5
    own, copied = task.model.base_encoder.state_dict(), task.model.momentum_encoder.state_dict()
    assert all(np.array_equal(own[name].numpy(), value.numpy()) for name, value in copied.items())
    assert all(parameter.stop_gradient for parameter in task.model.momentum_encoder.parameters())


def train(folder, name, *flags, opts=()):
    return script_runs.train(main_multi_gpu_pretrain.main, folder, name, [*OPTS, *opts], *flags)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("moco"), "run")


@pytest.mark.quick
def test_it_trains_resumes_bit_identically_and_is_finetuned(trained, tmp_path, tiny_yaml):
    records = [record for record in read_log(trained) if record["event"] == "train"]
    assert all(abs(r["loss"] - r["loss_view0"] - r["loss_view1"]) < 1e-5 for r in records)
    script_runs.stop_after_step(trained, tmp_path)
    found = script_runs.assert_same(train(tmp_path, "again", "-resume", "auto"), trained)
    assert any(name.startswith(f"{EXTRA_FILE}/momentum_encoder.encoder.") for name in found)
    cfg = tiny_yaml("finetune", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 256)
    assert (
        main_multi_gpu_finetune.main(["-cfg", cfg, "-pretrained", str(trained), "-output", str(tmp_path)])["loss"] > 0
    )


@pytest.mark.quick
@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["TRAIN.ACCUM_ITER", 2], "ACCUM_ITER=2: .* set it to 1"),
        (["DATA.DROP_LAST", False], "DROP_LAST=False: .* set it to True"),
        (["DATA.BATCH_SIZE", 1], "a micro-step of one image"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, opts, said):
    with pytest.raises(ValueError, match=said):
        train(tmp_path, "run", opts=opts)


@pytest.mark.parametrize("recomputes", [False, True])
def test_two_ranks_are_one_with_the_joint_batch(tmp_path, recomputes):
    # With a large epsilon an update is proportional to the gradient; else Adam turns roundings of tiny ones into steps.
    opts = ["TRAIN.WARMUP_EPOCHS", 0, "TRAIN.OPTIMIZER.EPS", 1.0, "TRAIN.BASE_LR", 0.1]
    opts += ["DATA.IMAGENET_STD", [0.05] * 3, "MOCO.AUGMENTATION", "minimal", "TRAIN.RECOMPUTE", recomputes]
    one = train(tmp_path, "one", opts=opts)
    zero = ("encoder.norm.bias", "predictor.1._mean")
    script_runs.compare_two_ranks(one, [*OPTS, *opts, "DATA.BATCH_SIZE", 32], ignore=zero)
