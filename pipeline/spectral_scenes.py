"""Generated scenes in 13 bands of a satellite: mixed materials, light, noise, a field to name. No Paddle here."""

import numpy as np

from pipeline.sources import Source

SIDE_PX, BANDS, MATERIALS = 32, 13, 5
CLASSES = [f"{material} in {sown}" for material in "ABCDE" for sown in ("rows", "plots")]
_NUM_IMAGES = {"train": 4000, "val": 1000}
_SEEDS = {"train": 0, "val": 1}
_NOISE = 400.0  # in units of a file, of which 10,000 is full reflectance
_VISIBLE = slice(1, 4)  # blue, green, red, in which A and B, and C and D, look alike
_PERIOD_PX = 4


class SpectralScenes(Source):
    """Scenes of SIDE_PX pixels with BANDS numbers each; the class is the material of a field, and how it was sown.

    The field is a disc of a quarter to half of the side, in rows (of either direction) or in plots like a chessboard,
    of one material, anywhere over a mixture of all materials, under light and shade. So neither brightness, nor a
    band, nor the mean of the scene tells the class; the three visible bands tell a part of it. Flips and turns keep it.

    Args:
        split: "train" or "val".
    """

    holds_arrays = True

    def __init__(self, split: str):
        self.labels = np.arange(_NUM_IMAGES[split], dtype=np.int64) % len(CLASSES)
        self.origin, self.class_names, self._seed = f"spectral_scenes {split}", list(CLASSES), _SEEDS[split]

    def image(self, index: int) -> np.ndarray:
        """Draw a scene, uint16 [H, W, BANDS]."""
        return draw_spectral_scene(self._seed, index, int(index) % len(CLASSES))


def spectra() -> np.ndarray:
    """Return the reflectance of each material in each band, [MATERIALS, BANDS], in units of a file."""
    rng = np.random.default_rng(7)
    places = np.arange(BANDS)
    curves = np.full((MATERIALS, BANDS), 600.0)
    for material in range(MATERIALS):
        for _ in range(3):
            centre, width, height = rng.uniform(0, BANDS), rng.uniform(1.0, 3.0), rng.uniform(400, 2500)
            curves[material] += height * np.exp(-(((places - centre) / width) ** 2))
    curves[1, _VISIBLE], curves[3, _VISIBLE] = curves[0, _VISIBLE], curves[2, _VISIBLE]
    return curves


def draw_spectral_scene(seed: int, index: int, label: int) -> np.ndarray:
    """Return the numbers of a scene, uint16 [H, W, BANDS]."""
    rng = np.random.default_rng([seed, index])
    logits = 3.0 * np.stack([_wave(rng) for _ in range(MATERIALS)], axis=-1)
    shares = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)  # [H, W, MATERIALS]
    places = np.mgrid[0:SIDE_PX, 0:SIDE_PX]
    (rows, columns), radius = places, rng.uniform(SIDE_PX / 8, SIDE_PX / 4)
    centre = rng.uniform(radius, SIDE_PX - radius, 2)
    stripes = [(place + rng.integers(_PERIOD_PX)) % _PERIOD_PX < _PERIOD_PX // 2 for place in places]
    is_sown = stripes[rng.integers(2)] if label % 2 == 0 else stripes[0] ^ stripes[1]
    field = (np.hypot(rows - centre[0], columns - centre[1]) < radius) & is_sown
    shares[field] = 0.2 * shares[field] + 0.8 * np.eye(MATERIALS)[label // 2]
    light = rng.uniform(0.5, 1.2) * (1.0 + 0.5 * _wave(rng)[..., None])
    numbers = light * (shares @ spectra()) + rng.normal(0, _NOISE, (SIDE_PX, SIDE_PX, BANDS))
    return np.clip(np.round(numbers), 1, 65535).astype(np.uint16)


def _wave(rng: np.random.Generator) -> np.ndarray:
    """Return a sum of three waves of random direction and pace, about -1 to 1, [H, W]."""
    rows, columns = np.mgrid[0:SIDE_PX, 0:SIDE_PX] / SIDE_PX
    waves = np.zeros((SIDE_PX, SIDE_PX))
    for _ in range(3):
        pace, angle, phase = rng.uniform(2, 14), rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
        waves += np.sin(pace * (rows * np.sin(angle) + columns * np.cos(angle)) + phase) / 3
    return waves
