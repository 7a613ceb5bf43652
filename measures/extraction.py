"""Features of images: of the whole encoder, or of any of its layers.

from measures.extraction import extract
features = extract(model, images)                                 # [B, D], what a classifier reads
layers = extract(model, images, layers=[6, 12], pool="tokens")    # {6: [B, T, D], 12: [B, T, D]}
"""

import functools
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle

from errors import UserError
from pipeline.loading import Loader, with_progress
from storage import atomic
from storage.files import create_array
from transformer import VisionTransformer

POOLS = ("cls", "mean", "tokens", "cls+mean")
ABOUT_FILE = "about.json"
_ROWS = 4096  # copied at a time
_OWN_FILE = re.compile(r"(features|labels|layer_-?\d+)\.npy")


@paddle.no_grad()
def extract(
    model: VisionTransformer,
    images: paddle.Tensor,
    layers: Sequence[int] | None = None,
    pool: str | None = None,
    norm: bool = False,
) -> paddle.Tensor | dict[int, paddle.Tensor]:
    """Compute features of a batch.

    Args:
        model: in evaluation mode.
        images: [B, C, H, W], normalised as in training; see `transforms.eval_transform`.
        layers: blocks, counted from 1, or from -1 backwards; None: the end of the encoder.
        pool: "cls" for the class token, "mean" of the patches, "tokens" for all, class token first, "cls+mean" for the
            two of them. None: the vector that the classifier reads; of `layers`, the class token.
        norm: put the encoder's last norm behind each of `layers`, so that its features are those of an encoder that
            ends there (`MODEL.ENCODER.DEPTH`).

    Returns:
        [B, D], [B, T, D] for tokens, [B, 2, D] for "cls+mean"; with layers, a dictionary from the numbers given to
        these.
    """
    if pool not in (None, *POOLS):
        raise UserError(f"pool={pool!r}: must be one of {', '.join(POOLS)}")
    if layers is None:
        if pool is None:
            return model.forward_features(images)
        tokens = model.forward_tokens(images)
        return _pool(tokens, pool) if model.encoder.norm is not None else model.encoder_norm(_pool(tokens, pool))
    blocks = model.encoder.layers
    for number in layers:
        if not 1 <= abs(number) <= len(blocks):
            raise UserError(f"layer {number}: the encoder has layers 1 to {len(blocks)}")
    found: dict[int, paddle.Tensor] = {}
    finish = functools.partial(_norm_and_pool, model) if norm else _pool
    hooks = [
        blocks[number - 1 if number > 0 else number].register_forward_post_hook(
            lambda layer, given, tokens, number=number: found.update({number: finish(tokens, pool or "cls")})
        )
        for number in layers
    ]
    try:
        model.forward_tokens(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {number: found[number] for number in layers}


def _norm_and_pool(model: VisionTransformer, tokens: paddle.Tensor, pool: str) -> paddle.Tensor:
    if model.encoder.norm is None:  # global pooling: the norm follows the mean
        return model.encoder_norm(_pool(tokens, pool))
    return _pool(model.encoder.norm(tokens), pool)


def _pool(tokens: paddle.Tensor, pool: str) -> paddle.Tensor:
    if pool == "tokens":
        return tokens
    if pool == "cls+mean":
        return paddle.stack([tokens[:, 0], tokens[:, 1:].mean(axis=1)], axis=1)
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(axis=1)


class Sink:
    """Takes arrays of a data set batch by batch, in memory or in memory-mapped files below a directory.

    The files are written under another name, and take the place of older ones in `finish`.
    """

    def __init__(self, num_images: int, directory: Path | None = None):
        self._num_images, self._directory, self._done = num_images, directory, 0
        if directory is not None and not (directory / ABOUT_FILE).is_file() and _own_files(directory):
            raise UserError(
                f"{directory}: {_own_files(directory)[0].name} in it is not from here; choose another directory"
            )
        self._writing = None if directory is None else tempfile.TemporaryDirectory(prefix=".writing-", dir=directory)
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, **arrays: np.ndarray) -> None:
        """Append a batch."""
        for name, batch in arrays.items():
            if name not in self.arrays:
                self.arrays[name] = self._create(name, batch.dtype, (self._num_images, *batch.shape[1:]))
            self.arrays[name][self._done : self._done + len(batch)] = batch
        self._done += len(next(iter(arrays.values())))

    def _create(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        if self._writing is None:
            return np.empty(shape, dtype)
        file = Path(self._writing.name) / f"{name}.npy"
        try:
            return create_array(file, dtype, shape)
        except OSError as error:
            raise UserError(f"{self._directory}: cannot be written: {error.strerror or error}") from error

    def finish(self) -> dict[str, np.ndarray]:
        """Return the arrays, without rows of images that cannot be read."""
        for name, array in self.arrays.items():
            if isinstance(array, np.memmap) and self._done < self._num_images:
                array = self._shorten(name, array)
            if isinstance(array, np.memmap):
                array.flush()
            self.arrays[name] = array[: self._done]
        if self._writing is not None:
            self._move()
        return self.arrays

    def _shorten(self, name: str, array: np.memmap) -> np.memmap:
        """Replace a file by one with the rows that were filled."""
        shorter = self._create(f"{name}.part", array.dtype, (self._done, *array.shape[1:]))
        for first in range(0, self._done, _ROWS):
            shorter[first : first + _ROWS] = array[first : min(first + _ROWS, self._done)]
        folder = Path(self._writing.name)
        os.replace(folder / f"{name}.part.npy", folder / f"{name}.npy")
        return shorter

    def _move(self) -> None:
        """Replace the files of an earlier call, after about.json, which describes them, is emptied."""
        atomic.write_text(self._directory / ABOUT_FILE, "{}")
        for file in _own_files(self._directory):
            file.unlink()
        for file in Path(self._writing.name).iterdir():
            os.replace(file, self._directory / file.name)
        self._writing.cleanup()


def _own_files(directory: Path) -> list[Path]:
    return [file for file in directory.glob("*.npy") if _OWN_FILE.fullmatch(file.name)]


def extract_all(
    model: VisionTransformer,
    loader: Loader,
    layers: Sequence[int] | None = None,
    pool: str | None = None,
    directory: Path | None = None,
    norm: bool = False,
) -> dict[str, np.ndarray]:
    """Compute the features of all images of a loader.

    Returns:
        `features`, or `layer_L` for each of `layers`, [N, ...] float32; `labels`, [N] int64.
    """
    sink = Sink(len(loader.source), directory)
    for batch in with_progress(loader, len(loader.source), "features"):
        found = extract(model, batch.images, layers, pool, norm)
        named = {f"layer_{n}": value for n, value in found.items()} if layers else {"features": found}
        sink.add(labels=batch.host_labels, **{name: value.astype("float32").numpy() for name, value in named.items()})
    if not sink.arrays:
        raise UserError(f"{loader.source.origin}: none of its images can be read")
    return sink.finish()
