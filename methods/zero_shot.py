"""Zero-shot classification: class names in any language become the classifier of a CLIP model."""

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F

from clip import CLIP
from errors import UserError

_TEXTS_AT_ONCE = 256


@paddle.no_grad()
def class_vectors(clip: CLIP, texts_of_classes: Sequence[str | Sequence[str]]) -> paddle.Tensor:
    """Return the vector of each class, [K, E]: the unit mean of the unit vectors of its texts (MAWS's rule).

    Args:
        texts_of_classes: K lists of texts, for example all templates with all names of a class; or a text each.
    """
    texts_of_classes = [[texts] if isinstance(texts, str) else texts for texts in texts_of_classes]
    empty = [number for number, texts in enumerate(texts_of_classes) if not texts]
    if empty or not texts_of_classes:
        raise UserError(f"class {empty[0]} has no texts" if empty else "there are no classes")
    flat = [text for texts in texts_of_classes for text in texts]
    order = sorted(range(len(flat)), key=lambda index: len(flat[index]))  # little padding
    vectors = np.empty((len(flat), clip.text_projection.shape[1]), np.float32)
    for first in range(0, len(flat), _TEXTS_AT_ONCE):
        chosen = order[first : first + _TEXTS_AT_ONCE]
        vectors[chosen] = clip.encode_texts([flat[index] for index in chosen]).numpy()
    bounds = np.cumsum([len(texts) for texts in texts_of_classes])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, bounds)])
    return F.normalize(paddle.to_tensor(means))
