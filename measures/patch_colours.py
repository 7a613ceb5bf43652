"""Features of patches as colours: the first three principal components, after CAPI (arXiv 2502.08769)."""

import numpy as np

_WIDEST = 2.3  # deviations from the mean at which a colour is full
_ROUNDING = 1e-9  # variances below this share of the largest one


def colours(features: np.ndarray) -> np.ndarray:
    """Return uint8 [N, 3]: red, green and blue are the first, second and third component, whitened.

    A component's sign is arbitrary: each is turned so that it is skewed to the right, so that the few patches which
    differ from the many are bright. A component that does not exist is grey.

    Args:
        features: [N, D] of patches, of one image or of several.
    """
    centred = np.asarray(features, np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    shown = np.zeros((len(features), 3))
    for column in range(min(3, centred.shape[1])):
        variance = variances[-1 - column]
        if variance <= _ROUNDING * max(variances[-1], 1e-30):
            break
        component = centred @ directions[:, -1 - column] / np.sqrt(variance)
        shown[:, column] = component if (component**3).sum() >= 0 else -component
    return np.round(np.clip((shown / _WIDEST + 1) / 2, 0, 1) * 255).astype(np.uint8)
