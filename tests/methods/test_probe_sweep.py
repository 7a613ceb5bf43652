"""Several probes trained at once are those that are trained one by one."""

import numpy as np
import paddle
import pytest

import checkpoint
import main_multi_gpu_linearprobe
from errors import UserError
from launch.run_directory import find
from methods import dispatch
from storage import weight_files
from storage.run_files import EXTRA_FILE, MODEL_FILE
from tests.conftest import assert_close
from training import engine, loaders
from training.log import read_log

pytestmark = pytest.mark.quick
RATES = [0.5, 2.0, 8.0]
SGD = ["TRAIN.OPTIMIZER.NAME", "SGD", "TRAIN.BASE_LR", 1.0, "DATA.BATCH_SIZE", 64, "TRAIN.NUM_EPOCHS", 2]


def test_each_head_is_the_probe_of_its_learning_rate(tiny_run):
    sweep = tiny_run("linearprobe", *SGD, "TRAIN.LR_SWEEP", RATES)
    task = dispatch.build_task(sweep)
    first = [head.weight.numpy() for head in task.model.heads]
    engine.fit(task, dispatch.build_train_loader(sweep), loaders.build_eval_loader(sweep), sweep)
    scores = [record for record in read_log(sweep.directory) if record["event"] == "eval"]
    for number, rate in enumerate(RATES):
        alone = tiny_run("linearprobe", *SGD, "TRAIN.BASE_LR", rate)
        single = dispatch.build_task(alone)
        single.model.head.weight.set_value(first[number])
        engine.fit(single, dispatch.build_train_loader(alone), loaders.build_eval_loader(alone), alone)
        assert_close(task.model.heads[number].weight.numpy(), single.model.head.weight.numpy(), 1e-5)
        own = [record for record in read_log(alone.directory) if record["event"] == "eval"]
        for together, apart in zip(scores, own, strict=True):
            assert together[f"acc1_lr{rate:g}"] == pytest.approx(apart["acc1"], abs=1e-4)
            assert together[f"loss_lr{rate:g}"] == pytest.approx(apart["loss"], rel=1e-5)
    for record in scores:
        assert record["acc1"] == max(record[f"acc1_lr{rate:g}"] for rate in RATES)


def test_a_rate_that_diverges_is_named(tiny_run):
    run = tiny_run("linearprobe", *SGD, "TRAIN.LR_SWEEP", [0.5, 1e6])
    task = dispatch.build_task(run)
    task.model.heads[1].weight.set_value(np.full(task.model.heads[1].weight.shape, np.inf, np.float32))
    with pytest.raises(UserError, match=r"not finite at update 1 on ranks \[0\], lr .* \(loss_lr1e\+06\)"):
        engine.fit(task, dispatch.build_train_loader(run), loaders.build_eval_loader(run), run)


def test_the_best_head_is_the_saved_probe(tiny_yaml, tmp_path):
    cfg = tiny_yaml("linearprobe", *SGD, "TRAIN.LR_SWEEP", RATES)
    scores = main_multi_gpu_linearprobe.main(["-cfg", cfg, "-output", str(tmp_path), "-opts", "RUN", "sweep"])
    run = tmp_path / "sweep"
    best = max(RATES, key=lambda rate: scores[f"acc1_lr{rate:g}"])
    extra = weight_files.read(find(run) / EXTRA_FILE).tensors
    model = weight_files.read(find(run) / MODEL_FILE).tensors
    chosen = extra[f"heads.{RATES.index(best)}.weight"].read()
    assert np.array_equal(model["classifier.1.weight"].read(), chosen)
    assert "selected on val, so optimistic" in (run / "log.txt").read_text()
    evaluated = main_multi_gpu_linearprobe.main(
        ["-cfg", cfg, "-eval", "-pretrained", str(find(run)), "-output", str(tmp_path)]
    )
    assert evaluated["acc1"] == pytest.approx(scores["acc1"], abs=1e-4)
    again = main_multi_gpu_linearprobe.main(["-resume", str(run), "-cfg", cfg, "-opts", "TRAIN.NUM_EPOCHS", "3"])
    assert set(again) == set(scores)
    assert checkpoint.read_weights(run)["classifier.1.weight"].shape == (32, 4)


def test_sgd_is_momentum_by_hand():
    from optim import build_optimizer

    weight = paddle.create_parameter([2], "float32", default_initializer=paddle.nn.initializer.Constant(1.0))
    optimizer = build_optimizer("SGD", [{"params": [weight], "learning_rate": 2.0, "weight_decay": 0.0}])
    for _ in range(2):
        optimizer.set_lr(0.1)
        (weight * paddle.to_tensor([1.0, -3.0])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
    expected = 1.0 - 0.2 * np.array([1.0, -3.0]) * (1.0 + 1.9)  # velocities g, then 0.9 g + g
    assert_close(weight.numpy(), expected, 1e-6)


@pytest.mark.parametrize(("rates", "message"), [([0.1, 0.1], "different numbers above 0"), ([0.0], "above 0")])
def test_rates_that_make_no_sense_are_refused(tiny_run, rates, message):
    with pytest.raises(ValueError, match=message):
        dispatch.build_task(tiny_run("linearprobe", *SGD, "TRAIN.LR_SWEEP", rates))
