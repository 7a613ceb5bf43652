"""How parameters are distributed over ranks or threads. No Paddle here."""

from collections.abc import Sequence

import numpy as np

BUCKET_BYTES = 32 << 20  # gradients that are sent together, in float32; a larger one goes alone


def share_out(sizes: Sequence[int], num_owners: int) -> list[int]:
    """Return an owner for each size, so that all own about as much: the largest goes first."""
    owners, owned = [0] * len(sizes), np.zeros(num_owners, np.int64)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owners[index] = int(owned.argmin())
        owned[owners[index]] += sizes[index]
    return owners


def largest_share(sizes: Sequence[int], num_owners: int) -> float:
    """Return the share of all that the owner of the most has; tensors are owned whole."""
    owned = np.zeros(num_owners, np.int64)
    np.add.at(owned, share_out(sizes, num_owners), sizes)
    return float(owned.max() / max(1, owned.sum()))
