"""What one process can show of sharded optimizers; test_resume.py trains with two."""

import numpy as np
import paddle
import pytest

from optim import build_optimizer, param_groups
from training import sharding
from training.sharding import ShardedOptimizer
from training.shares import largest_share, share_out

pytestmark = pytest.mark.quick


def test_shares_are_about_equal_and_the_same_everywhere():
    sizes = [10, 900, 300, 300, 290, 5, 400]
    owners = share_out(sizes, 3)
    owned = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(3)]
    assert sum(owned) == sum(sizes)
    assert max(owned) == 900  # nothing can be less than the largest tensor
    assert min(owned) > 600
    assert largest_share(sizes, 3) == 900 / sum(sizes)
    assert largest_share(sizes, 1) == 1.0


@pytest.mark.parametrize("name", ["AdamW", "LARS"])
def test_a_rank_keeps_the_state_of_its_share_and_updates_no_other(monkeypatch, name):
    monkeypatch.setattr(sharding.runtime, "world_size", lambda: 2)
    monkeypatch.setattr(sharding.runtime, "rank", lambda: 1)
    sent = []

    class Sent:
        def wait(self):
            pass

    def broadcast(parameter, src, sync_op):
        sent.append((parameter.name, src))
        return Sent()

    monkeypatch.setattr(sharding.dist, "broadcast", broadcast)
    paddle.seed(0)
    model = paddle.nn.Sequential(paddle.nn.Linear(8, 8), paddle.nn.Linear(8, 4))
    groups = param_groups(model, 0.05)
    optimizer = ShardedOptimizer(lambda own: build_optimizer(name, own), groups)
    optimizer.set_lr(0.1)
    before = [parameter.numpy().copy() for parameter in optimizer._parameter_list]
    model(paddle.rand([2, 8])).square().mean().backward()
    optimizer.step()
    owners = share_out([parameter.size for parameter in optimizer._parameter_list], 2)
    assert sent == [(p.name, owner) for p, owner in zip(optimizer._parameter_list, owners, strict=True)]
    assert set(owners) == {0, 1}
    for parameter, old, owner in zip(optimizer._parameter_list, before, owners, strict=True):
        assert bool((parameter.numpy() != old).any()) == (owner == 1)
    own = {p.name for p, owner in zip(optimizer._parameter_list, owners, strict=True) if owner == 1}
    state = optimizer._optimizer.state_dict()
    assert {key.rsplit("_", 2)[0] for key in state if "moment" in key or "velocity" in key} <= own | {
        f"{name}_lars" for name in own
    }
    optimizer.clear_grad(set_to_zero=False)
    assert all(parameter.grad is None or not np.any(parameter.grad.numpy()) for parameter in model.parameters())
