"""Generated scenes with known masks: textured shapes over textured grounds. No Paddle here."""

import numpy as np
from PIL import Image

from errors import UserError
from pipeline.sources import Source

CLASSES = ["ground", "disc", "ring", "square", "cross", "triangle", "stripes", "checks"]
SIDE_PX = 64
_NUM_IMAGES = {"train": 2000, "val": 400}
_SEEDS = {"train": 0, "val": 1}


class Scenes(Source):
    """Scenes of SIDE_PX pixels with one to four shapes each.

    Seven classes of shapes lie over a ground. Colours are drawn at random for each shape and ground, so that they say
    nothing of a class. The last two classes are discs or squares that differ from the others by their texture alone.

    Args:
        split: "train" or "val".
    """

    has_masks = True

    def __init__(self, split: str):
        self.labels = np.full(_NUM_IMAGES[split], -1, np.int64)
        self.origin, self.class_names, self._seed = f"scenes {split}", list(CLASSES), _SEEDS[split]

    def image(self, index: int) -> Image.Image:
        """Draw a scene."""
        return Image.fromarray(draw_scene(self._seed, index)[0])

    def mask(self, index: int) -> np.ndarray:
        """Return its labels, int16 [H, W]."""
        return draw_scene(self._seed, index)[1]

    def use_class_names(self, class_names: list[str]) -> None:
        """Refuse classes of other names, or in another order."""
        if class_names != CLASSES:
            raise UserError(f"{self.origin}: its classes are {', '.join(CLASSES)}, and the trained ones are others")

    def summary(self) -> str:
        """Return a line with the numbers of images and classes."""
        return f"{len(self):,} generated scenes with masks of {len(CLASSES)} classes"


def draw_scene(seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 [H, W, 3] and labels int16 [H, W] of a scene."""
    rng = np.random.default_rng([seed, index])
    rows, columns = np.mgrid[0:SIDE_PX, 0:SIDE_PX].astype(np.float64)
    pixels = _two_colours(rng, _wave(rng, rows, columns, 0.35))
    labels = np.zeros((SIDE_PX, SIDE_PX), np.int16)
    for _ in range(rng.integers(1, 5)):
        label = int(rng.integers(1, len(CLASSES)))
        centre, radius, angle = rng.uniform(10, SIDE_PX - 10, 2), rng.uniform(8, 18), rng.uniform(0, np.pi)
        down, right = rows - centre[0], columns - centre[1]
        x, y = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
        inside = _is_inside(label, x / radius, y / radius, rng)
        pixels[inside] = _two_colours(rng, _texture(label, x, y, rng))[inside]
        labels[inside] = label
    noisy = pixels + rng.normal(0, 8, pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), labels


def _is_inside(label: int, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return where the shape of a class is, of coordinates in which it reaches from -1 to 1."""
    far, square = np.hypot(x, y), np.maximum(abs(x), abs(y))
    shape = CLASSES[label]
    if shape in ("stripes", "checks"):
        shape = ("disc", "square")[rng.integers(2)]
    if shape == "ring":
        return (far < 1) & (far > 0.55)
    if shape == "cross":
        return (square < 1) & (np.minimum(abs(x), abs(y)) < 0.35)
    if shape == "triangle":
        return (y < 0.8) & (y > 2 * abs(x) - 1)
    return far < 1 if shape == "disc" else square < 0.85


def _texture(label: int, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return values from 0 to 1, [H, W]: stripes and checks of 4 pixels for their classes, else a gentle wave."""
    stripes = (x // 4 % 2).astype(np.float64)
    if CLASSES[label] == "stripes":
        return stripes
    if CLASSES[label] == "checks":
        return abs(stripes - y // 4 % 2)
    return _wave(rng, y, x, 0.12)


def _wave(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, most: float) -> np.ndarray:
    """Return a wave from 0 to 1, [H, W], of a random direction and up to `most` radians per pixel."""
    pace, angle = rng.uniform(0.3, 1.0) * most, rng.uniform(0, np.pi)
    return 0.5 + 0.5 * np.sin(pace * (rows * np.sin(angle) + columns * np.cos(angle)) + rng.uniform(0, 2 * np.pi))


def _two_colours(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """Return pixels [H, W, 3] between two random colours, by shares [H, W] of the second one."""
    first, second = rng.uniform(20, 235, (2, 3))
    second = np.where(abs(second - first).max() < 60, (first + 110) % 255, second)
    return first + shares[..., None] * (second - first)
