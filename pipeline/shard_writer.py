"""Write WebDataset shards: tar files of images with captions and labels."""

import concurrent.futures
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

import runtime
from errors import UserError
from pipeline.sources import Source, describe_unreadable
from program import terminal

_FORMAT = tarfile.USTAR_FORMAT


def open_shard(path: Path) -> tarfile.TarFile:
    """Open a tar file to write."""
    return tarfile.open(path, "w", format=_FORMAT)


def write_sample(
    tar: tarfile.TarFile, key: str, suffix: str, image: bytes, caption: str = "", labels: Sequence[int] = ()
) -> None:
    """Add a sample to a shard: KEY.SUFFIX, and KEY.txt and KEY.cls where there is a caption or a label.

    Args:
        key: name of the sample, without dots.
        suffix: of the encoded image, with its dot.
    """
    members = {suffix: image, ".txt": caption.encode(), ".cls": ",".join(map(str, labels)).encode()}
    for ending, data in members.items():
        if data:
            member = tarfile.TarInfo(f"{key}{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_shards(
    source: Source, out: Path, encode: Callable[[int], tuple[str, bytes]], per_shard: int, skip_bad: bool
) -> list[str]:
    """Write the shards of a split into `out`; whole shards of an interrupted call are kept.

    Args:
        encode: returns suffix and content of the file of an image.
        skip_bad: leave out what cannot be read.

    Returns:
        A message for each image that was left out.

    Raises:
        UserError: for an image that cannot be read, without `skip_bad`.
    """
    out.mkdir(parents=True, exist_ok=True)
    left_out: list[str] = []
    labels = source.label_lists()
    starts = range(0, len(source), per_shard)
    with concurrent.futures.ThreadPoolExecutor(runtime.num_cores()) as pool:
        for number, start in enumerate(tqdm(starts, f"{out.name} shards", disable=None, file=terminal(sys.stderr))):
            shard = out / f"{number:05d}.tar"
            noted = shard.with_suffix(".left_out")
            if not shard.exists():
                indices = range(start, min(start + per_shard, len(source)))
                results = pool.map(lambda index: _try(encode, source, index), indices)
                temporary, bad = shard.with_suffix(".tmp"), []
                with open_shard(temporary) as tar:
                    for index, result in zip(indices, results, strict=True):
                        if isinstance(result, tuple):
                            own = [label for label in labels[index] if label >= 0]
                            caption = source.captions[index] if source.captions is not None else ""
                            write_sample(tar, _sample_key(source, index), *result, caption, own)
                        elif skip_bad:
                            bad.append(result)
                        else:
                            raise UserError(f"{result}; -skip_bad leaves it out")
                noted.write_text(json.dumps(bad), encoding="utf-8")
                os.replace(temporary, shard)
            left_out += json.loads(noted.read_text(encoding="utf-8"))
    for noted in out.glob("*.left_out"):
        noted.unlink()
    return left_out


def _try(encode: Callable, source: Source, index: int) -> tuple[str, bytes] | str:
    try:
        return encode(index)
    except Exception as error:  # damaged files raise nearly anything
        return describe_unreadable(source, index, error)


def _sample_key(source: Source, index: int) -> str:
    """Return a sample's key: its number, and the end of the image's path, which fit into a tar header."""
    name = Path(source.describe(index)).with_suffix("").as_posix()[-60:]
    return f"{index:09d}-" + "".join(
        char if char.isascii() and (char.isalnum() or char in "_-") else "_" for char in name
    )
