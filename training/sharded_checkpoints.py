"""Checkpoints of a sharded optimizer: each rank writes its part of the state, tensor by tensor, while training waits.

    step-00000312/optimizer-00000-of-00004.pdopt, optimizer-00001-of-00004.pdopt, ...     by the ranks
                  model.pdparams, ema.pdparams, extra.pdparams                            by the first rank
                  state.json, config.yaml, manifest.json     by the first rank, while training continues

The checkpoint gets its name when all files are written. So it is whole or not there, and no host holds more of it than
one tensor. Any number of ranks reads it, see `checkpoints.load`.
"""

import dataclasses
import shutil
import socket
from pathlib import Path

import runtime
from errors import UserError
from layers import across_ranks
from storage import atomic, weight_files
from storage.run_files import optimizer_part
from training.checkpoints import Snapshot, Writer, begin, named_errors, writing_directory
from training.checkpoints import write_tensors as write_all_tensors


def shared_directory(run_dir: Path | None) -> Path | None:
    """Return the run's directory, which the first rank knows, on all ranks; None for a run without one.

    Raises:
        UserError: if a rank does not see it.
    """
    found = across_ranks.gather_texts([] if run_dir is None else [str(run_dir.resolve())])
    if not found:
        return None
    directory = Path(found[0])
    blind = across_ranks.gather_texts([] if directory.is_dir() else [socket.gethostname()])
    if blind:
        raise UserError(
            f"{directory}: is not there on {', '.join(sorted(set(blind)))}; with TRAIN.SHARDING, each rank writes its "
            "part of a checkpoint, so -output must be a directory that all nodes share"
        )
    return directory


def write_tensors(run_dir: Path, saved: Snapshot, writer: Writer | None) -> Snapshot:
    """Write the tensors of a checkpoint; all ranks must call it.

    Args:
        run_dir: of the run, on all ranks.
        saved: on each rank with its part of the optimizer's state.
        writer: of the first rank; it may still be busy with the checkpoint before.

    Returns:
        What is left for the writer, without tensors.

    Raises:
        UserError: on all ranks, if one of them cannot write; the older checkpoints are intact.
    """
    step, directory = saved.state.step, writing_directory(run_dir, saved.state.step)
    parts = [optimizer_part(rank, runtime.world_size()) for rank in range(runtime.world_size())]

    def prepare() -> None:
        if writer is not None:
            writer.wait()
            begin(run_dir, step)

    def write() -> None:
        own = parts[runtime.rank()]
        if runtime.is_main():
            write_all_tensors(directory, saved, own)
        else:
            weight_files.write_nested(directory / own, "optimizer", saved.optimizer)
        atomic.sync(directory / own)

    def check() -> None:
        missing = [name for name in parts if not (directory / name).is_file()]
        if writer is not None and missing:
            raise FileNotFoundError(0, f"{missing[0]} of another node is not there; -output must be shared")

    for work in (prepare, write, check):
        problems = []
        try:
            with named_errors(run_dir, step):
                work()
        except Exception as error:  # the other ranks would wait
            problems.append(str(error) if isinstance(error, UserError) else repr(error))
        problems = across_ranks.gather_texts(problems)
        if problems:
            if runtime.is_main():
                shutil.rmtree(directory, ignore_errors=True)
            raise UserError(problems[0])
    return dataclasses.replace(saved, weights={}, extra={}, optimizer={}, ema=None, are_written=True)
