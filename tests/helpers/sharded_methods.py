"""Do two updates of each method with gradients on every rank, and with gradients on their owners; compare weights.

python -m paddle.distributed.launch --nproc_per_node 2 tests/helpers/sharded_methods.py RESULT.json
"""

import json
import sys
import unittest.mock
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import runtime

runtime.prepare()

import numpy as np
import paddle

from benchmarks import sides
from config import get_config
from layers import across_ranks
from tests.conftest import TINY
from tests.training.test_host_copies import METHODS
from training import engine
from training.sharded_gradients import ReducingToOwners
from training.sharding import ShardedOptimizer

trainings = []
_start = engine.Training.start


def start(training) -> None:
    """Note the training that a step is made of."""
    trainings.append(training)
    _start(training)


def check_that_all_ranks_know_of_an_infinite_gradient() -> None:
    """As the loss scaler of fp16 needs it, which works on GPUs only."""
    groups = [{"params": [paddle.create_parameter([3], "float32") for _ in range(4)]}]
    model = paddle.nn.ParameterList(groups[0]["params"])
    optimizer = ShardedOptimizer(lambda own: paddle.optimizer.SGD(parameters=own), groups)
    exchange = ReducingToOwners(model, optimizer, "float32")
    for number, is_finite in ((1.0, True), (float("inf"), False), (float("nan"), False)):
        with exchange.micro_step(is_last=True):
            sum((parameter * (number if runtime.rank() else 1.0)).sum() for parameter in model).backward()
        exchange.finish()
        exchange.spread_infinity()
        own = [parameter.grad for parameter in model if parameter.grad is not None]
        assert own, "each rank owns some"
        assert all(gradient.isfinite().all() for gradient in own) == is_finite
        with unittest.mock.patch.object(paddle, "to_tensor", wraps=paddle.to_tensor) as copy:
            exchange.clip(None)
        assert not copy.called, "an update copies nothing to the device"
        optimizer.clear_grad(False)


def train(options: list) -> dict[str, np.ndarray]:
    """Return the weights after two updates on this rank's images."""
    step, _ = sides.make_step("ours", get_config(None, [*TINY, *options]), 16)
    step()
    step()
    training = trainings.pop()
    assert isinstance(training.exchange, ReducingToOwners) == (training.run.config.TRAIN.SHARDING == "gradients")
    task = training.task
    assert all(parameter.grad is None for parameter in task.model.parameters())
    return {name: value.numpy().astype(np.float64) for name, value in task.model.state_dict().items()}


def main(result: str) -> None:
    """Write the largest difference of each method and variant, as a share of the largest weight of the same tensor."""
    across_ranks.join()
    check_that_all_ranks_know_of_an_infinite_gradient()
    engine.Training.start = start
    differences = {}
    for method, options in METHODS.items():
        variants = [[], ["TRAIN.RECOMPUTE", True], *([["TRAIN.BF16_ALLREDUCE", True]] if method == "finetune" else [])]
        for variant in variants:
            whole, own = (train([*options, "TRAIN.SHARDING", mode, *variant]) for mode in ("none", "gradients"))
            shares = [abs(own[name] - value).max() / max(abs(value).max(), 1e-3) for name, value in whole.items()]
            differences[" ".join([method, *map(str, variant)])] = max(shares)
            for value in own.values():
                total = paddle.to_tensor(value)
                paddle.distributed.all_reduce(total)
                assert np.array_equal(total.numpy(), 2 * value), f"{method}: ranks differ"
    Path(result).write_text(json.dumps(differences))


main(sys.argv[1])
