"""Threads that update shares of the parameters: the same bits as one optimizer, and the same checkpoints."""

import numpy as np
import paddle
import pytest

from config import get_config
from methods import dispatch
from optim import build_optimizer, param_groups
from tests.conftest import MODES, TINY
from training import optimizers
from training.checkpoints import optimizer_state_by_name, set_optimizer_state_by_name
from training.optimizers import ThreadedOptimizer
from transformer import build_transformer

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def _small_shares(monkeypatch):
    monkeypatch.setattr(optimizers, "_LEAST_PER_THREAD", 100)
    monkeypatch.setattr(optimizers.runtime, "num_cores", lambda: 3)


def network(seed=0):
    paddle.seed(seed)
    return build_transformer(get_config(None, [*TINY, *MODES["finetune"]]))


def update(model, optimizer, seed):
    paddle.seed(seed)
    model(paddle.randn([4, 3, 16, 16])).square().mean().backward()
    optimizer.set_lr(0.01)
    optimizer.step()
    optimizer.clear_grad(set_to_zero=False)


def test_three_threads_make_the_same_weights_and_state_as_one():
    models = [network(), network()]
    groups = [param_groups(model, 0.05, layer_decay=0.65) for model in models]
    one = build_optimizer("AdamW", groups[0])
    three = ThreadedOptimizer(lambda share: build_optimizer("AdamW", share), 3, groups[1])
    assert len(three._parts) == 3
    assert sum(len(part._parameter_list) for part in three._parts) > 0
    for seed in range(3):
        update(models[0], one, seed)
        update(models[1], three, seed)
    for name, value in models[0].state_dict().items():
        assert np.array_equal(value.numpy(), models[1].state_dict()[name].numpy()), name
    states = [optimizer_state_by_name(model, own) for model, own in zip(models, (one, three), strict=True)]
    one, three = ({key: value.numpy().tobytes() for key, value in state.items()} for state in states)
    assert one == three


def test_a_state_goes_from_three_threads_to_three_and_to_one(tmp_path):
    build = lambda share: build_optimizer("AdamW", share)
    model = network()
    three = ThreadedOptimizer(build, 3, param_groups(model, 0.05))
    update(model, three, 0)
    saved = {key: value.numpy() for key, value in optimizer_state_by_name(model, three).items()}
    results = []
    for make in (lambda groups: ThreadedOptimizer(build, 3, groups), build):
        other = network(1)
        other.set_state_dict(model.state_dict())
        optimizer = make(param_groups(other, 0.05))
        set_optimizer_state_by_name(other, optimizer, saved, tmp_path)
        update(other, optimizer, 1)
        results.append([value.numpy().tobytes() for value in other.state_dict().values()])
    update(model, three, 1)
    assert results[0] == results[1] == [value.numpy().tobytes() for value in model.state_dict().values()]


@pytest.mark.parametrize("sharded", [False, True])
def test_a_run_on_cpu_uses_them(tiny_run, sharded):
    task = dispatch.build_task(tiny_run("finetune", "TRAIN.SHARDING", "optimizer" if sharded else "none"))
    found = task.optimizer._optimizer if sharded else task.optimizer
    assert isinstance(found, ThreadedOptimizer)
    assert len(found._parts) == 3


def test_an_error_in_a_thread_is_raised():
    optimizer = ThreadedOptimizer(lambda share: build_optimizer("AdamW", share), 2, param_groups(network(), 0.0))

    def fail():
        raise MemoryError("no room")

    optimizer._parts[1].step = fail
    with pytest.raises(MemoryError, match="no room"):
        optimizer.step()
