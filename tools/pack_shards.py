"""Pack images with captions or labels into WebDataset shards, for `tools.pack_dataset -dataset lists`."""

import concurrent.futures
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

import runtime
from errors import UserError
from pipeline.image_lists import Entry, ListedImages
from pipeline.sources import describe_unreadable
from program import terminal


def write_tar_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to a tar."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def pack_lists(
    source: ListedImages, out: Path, encode: Callable[[int], tuple[str, bytes]], per_shard: int, skip_bad: bool
) -> dict[str, int | list[str]]:
    """Write the shards of a split below `out`; whole shards of an interrupted call with the same plan are kept.

    Args:
        encode: returns suffix and content of the file of an image.

    Returns:
        "images", "shards", and under "bad" what was left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    bad: list[str] = []
    starts = range(0, len(source), per_shard)
    with concurrent.futures.ThreadPoolExecutor(runtime.num_cores()) as pool:
        for number, start in enumerate(tqdm(starts, f"{out.name} shards", disable=None, file=terminal(sys.stderr))):
            shard = out / f"{number:05d}.tar"
            noted = shard.with_suffix(".left_out")
            if shard.exists():
                bad += json.loads(noted.read_text(encoding="utf-8"))
                continue
            indices = range(start, min(start + per_shard, len(source)))
            temporary, own_bad = shard.with_suffix(".tmp"), []
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                results = pool.map(lambda index: _try(encode, source, index), indices)
                for index, result in zip(indices, results, strict=True):
                    if isinstance(result, str) and not skip_bad:
                        raise UserError(f"{result}; -skip_bad leaves it out")
                    if isinstance(result, str):
                        own_bad.append(result)
                    else:
                        _write_sample(tar, source.entry(index), index, *result)
            noted.write_text(json.dumps(own_bad), encoding="utf-8")
            os.replace(temporary, shard)
            bad += own_bad
    for noted in out.glob("*.left_out"):
        noted.unlink()
    return {"images": len(source) - len(bad), "shards": len(starts), "bad": bad}


def _try(encode: Callable, source: ListedImages, index: int) -> tuple[str, bytes] | str:
    try:
        return encode(index)
    except Exception as error:  # damaged files raise nearly anything
        return describe_unreadable(source, index, error)


def _write_sample(tar: tarfile.TarFile, entry: Entry, index: int, suffix: str, data: bytes) -> None:
    write_tar_member(tar, f"{index:09d}{suffix}", data)
    if entry.caption:
        write_tar_member(tar, f"{index:09d}.txt", entry.caption.encode())
    if entry.labels:
        write_tar_member(tar, f"{index:09d}.cls", ",".join(map(str, entry.labels)).encode())
