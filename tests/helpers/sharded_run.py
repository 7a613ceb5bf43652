"""Finetune with and without TRAIN.SHARDING, up to a number of updates; run by each of several processes.

python -m paddle.distributed.launch --nproc_per_node 4 tests/helpers/sharded_run.py OUT STOP FLAGS...

Each transfer takes one parameter, without sharding, too: gloo's order of addition depends on the place in the buffer.
"""

import contextlib
import functools
import json
import sys
import zlib  # noqa: F401 - before Paddle 2.6, which has one of its own
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import runtime

runtime.prepare()

import paddle

import main_multi_gpu_finetune
from program import Stopped
from training import engine, sharded_gradients
from training.sharded_gradients import ReducingToOwners

_ONE_BYTE = 1 / (1 << 20)  # in MiB
_send, _update = ReducingToOwners._send, engine.Training.update
held = {"most": 0}


def measuring_send(self, bucket):
    """Note the most gradients that this rank holds beside its own sums, as numbers."""
    waiting = sum(p.size for p in self._trained if p.grad is not None)
    in_transit = sum(transfer[-1].size for transfer in self._pending)
    held["most"] = max(held["most"], waiting + in_transit)
    held["sums"] = sum(value.size for value in self._sums.values())
    held["owned"] = sum(p.size for p in self._trained if self._owners[p.name] == runtime.rank())
    held["largest"] = max(parameter.size for parameter in self._trained)
    _send(self, bucket)


def main(out: str, stop: str, *flags: str) -> None:
    """Train."""

    def stopping_update(training, batches, update, lr):
        training.guard._stop.requested = training.step >= int(stop) - 1
        _update(training, batches, update, lr)

    paddle.DataParallel = functools.partial(
        paddle.DataParallel, comm_buffer_size=_ONE_BYTE, last_comm_buffer_size=_ONE_BYTE
    )
    sharded_gradients.BUCKET_BYTES = 1
    ReducingToOwners._send, engine.Training.update = measuring_send, stopping_update
    for mode in ("none", "optimizer", "gradients"):
        with contextlib.suppress(Stopped):
            output = ["-output", f"{out}/{mode}", "-resume", "auto", "-device", "cpu"]
            main_multi_gpu_finetune.main([*flags, *output, "-opts", "TRAIN.SHARDING", mode])
    Path(out, f"held-{runtime.world_size()}-{runtime.rank()}.json").write_text(json.dumps(held))


main(*sys.argv[1:])
