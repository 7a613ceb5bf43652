"""What one decoding of each image tells: hashes, size, a small grey image, a picture for pages, and its quality.

Blur, dark and light follow the definitions of cleanvision 0.3.7.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from errors import UserError, printable
from measures.curation.images import Images
from measures.extraction import ABOUT_FILE
from pipeline.sources import Source, describe_unreadable, read_image
from pipeline.workers import WorkerPool
from storage import atomic
from storage.files import create_array, read_json

GREY_PX, PICTURE_PX = 64, 32
_MEDIUM_PX, _BLUR_PX = 256, 64
_BLOCK, _JOB = 1024, 16  # images that are kept at a time, and that a worker looks at
_LONGEST_PROBLEM = 300
QUALITY = {
    "brightness": "mean of the grey levels, 0 to 255",
    "contrast": "deviation of the grey levels",
    "entropy": "of the grey levels, in bits",
    "commonest": "share of the commonest grey level: banners and blank images",
    "dark": "99th percentile of the perceived brightness, 0 to 1; low: too dark",
    "light": "1 less the 5th percentile of the perceived brightness; low: too light",
    "sharpness": "deviation of the edges at 64 pixels, as 1 - exp(-0.01 x); low: blurred",
    "border": "share of rows and columns at the edges that have one colour",
    "shape": "shorter side by longer side",
    "megapixels": "size",
    "bytes_per_pixel": "of the file; 0 where an image has none",
}
FILES = ("facts.npy", ABOUT_FILE)
FACTS = np.dtype(
    [
        ("problem", np.bytes_, _LONGEST_PROBLEM),  # why it cannot be read; empty if it can
        ("file", np.uint8, 32),
        ("pixels", np.uint8, 32),
        ("width", np.uint32),
        ("height", np.uint32),
        ("bytes", np.uint64),
        ("colour", np.float32, 3),
        ("quality", np.float32, len(QUALITY)),
        ("grey", np.uint8, (GREY_PX, GREY_PX)),
        ("picture", np.uint8, (PICTURE_PX, PICTURE_PX, 3)),
    ]
)


def look_at(source: Source, index: int) -> np.ndarray:
    """Return what is known of an image, a scalar of `FACTS`.

    `file` is the SHA-256 of its bytes (zeros where it is in no file), and `pixels` that of its size and RGB values,
    upright; `colour` is the mean RGB; `grey` and `picture` are the whole image, squeezed into a square.

    Raises:
        Exception: of any kind, for an image that cannot be read.
    """
    facts = np.zeros((), FACTS)
    data = source.read(index) if source.is_encoded else b""
    image = read_image(source, index, 3)
    content = f"{image.width} x {image.height} ".encode() + image.tobytes()
    if data:
        facts["file"] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    facts["pixels"] = np.frombuffer(hashlib.sha256(content).digest(), np.uint8)
    facts["width"], facts["height"], facts["bytes"] = image.width, image.height, len(data)
    square = image.resize((GREY_PX, GREY_PX), Image.Resampling.BILINEAR)
    facts["grey"] = np.asarray(square.convert("L"))
    facts["colour"] = np.asarray(square, np.float32).mean(axis=(0, 1))
    facts["picture"] = np.asarray(image.resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BILINEAR))
    facts["quality"] = _quality(image, len(data))
    return facts


def _quality(image: Image.Image, num_bytes: int) -> list[float]:
    """Return the values of `QUALITY`, in that order."""
    size = image.width * image.height
    shape = min(image.size) / max(image.size)
    image.thumbnail((_MEDIUM_PX, _MEDIUM_PX))
    rgb, grey = np.asarray(image, np.float32), np.asarray(image.convert("L"))
    levels = np.bincount(grey.ravel(), minlength=256) / grey.size
    used = levels[levels > 0]
    perceived = np.sqrt(rgb**2 @ np.array([0.241, 0.691, 0.068], np.float32)) / 255.0
    dark, light = np.percentile(perceived, [99, 5])
    flat_rows, flat_columns = (np.ptp(rgb, axis=axis).max(axis=-1) < 1 for axis in (1, 0))
    border = max(_at_the_edges(flat_rows), _at_the_edges(flat_columns))
    image.thumbnail((_BLUR_PX, _BLUR_PX))
    edges = np.asarray(image.convert("L").filter(ImageFilter.FIND_EDGES), np.float32)
    sharpness = 1.0 - np.exp(-0.01 * edges.std())
    entropy = -(used * np.log2(used)).sum()
    values = [grey.mean(), grey.std(), entropy, levels.max(), dark, 1.0 - light, sharpness, border]
    return [*values, shape, size / 1e6, num_bytes / size]


def _at_the_edges(is_flat: np.ndarray) -> float:
    """Return the share of lines [N] that are flat without a break from either edge."""
    return 1.0 if is_flat.all() else float((is_flat.argmin() + is_flat[::-1].argmin()) / len(is_flat))


def collect(images: Images, num_workers: int, cache: Path, about: dict[str, object]) -> np.ndarray:
    """Look at all images of a set; every block that is done is kept, so a killed process loses one block.

    Args:
        cache: directory for the facts and for what they are of.
        about: plain values that say which images these are; facts of others are replaced.

    Returns:
        [N] of `FACTS`, a memory-mapped file.
    """
    file, note, total = cache / FILES[0], cache / ABOUT_FILE, len(images)
    done = _images_done(note, about) if file.is_file() else 0
    facts = _open_facts(file, total) if 0 < done <= total else None
    if facts is None:
        done = 0
        try:
            facts = create_array(file, FACTS, (total,))
        except OSError as error:
            raise UserError(f"{cache}: cannot be written: {error.strerror or error}") from error
    pool = WorkerPool(lambda job, out: _fill(images, job, out), num_workers, (_JOB,), FACTS)
    try:
        jobs = [range(first, min(first + _JOB, total)) for first in range(done, total, _JOB)]
        for job, (found, _) in zip(jobs, pool.run(jobs), strict=True):
            facts[job.start : job.stop] = found[: len(job)]
            if job.stop % _BLOCK == 0 or job.stop == total:
                facts.flush()
                atomic.write_text(note, json.dumps(about | {"done": job.stop}))
    finally:
        pool.close()
    return facts


def _open_facts(file: Path, total: int) -> np.memmap | None:
    """Open the facts of an earlier command; None if they are damaged."""
    try:
        known = np.load(file, mmap_mode="r")  # which a file that is too short does not open; "r+" would make it longer
        if known.dtype == FACTS and known.shape == (total,):
            return np.load(file, mmap_mode="r+")
        problem = "is of another version"
    except (OSError, ValueError, EOFError) as error:
        problem = printable(error)
    print(f"warning: {file}: {problem}; the images are read again")
    return None


def _images_done(note: Path, about: dict[str, object]) -> int:
    """Return how many images a cache has; 0 if they are others."""
    try:
        found = read_json(note, {"done": int})
    except UserError:
        return 0
    return found["done"] if {key: found.get(key) for key in about} == about else 0


def _fill(images: Images, numbers: range, out: np.ndarray) -> None:
    """Look at some images, and write what is known of them to `out`."""
    for row, number in enumerate(numbers):
        source, index = images.place(number)
        try:
            out[row] = look_at(source, index)
        except Exception as error:  # damaged files raise nearly anything
            out[row] = np.zeros((), FACTS)
            message = describe_unreadable(source, index, error)
            out[row]["problem"] = message.encode("utf-8", "backslashreplace")[:_LONGEST_PROBLEM]
