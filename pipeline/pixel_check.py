"""Whether the numbers of arrays are those that a configuration expects: the commonest bug is a silent wrong scale."""

from collections.abc import Iterable

import numpy as np

from pipeline.pixel_array import PixelFormat
from pipeline.sources import Source

_MOST_OUTSIDE = 0.01
_MOST_DEVIATIONS = 3.0


def pixel_problems(config, source: Source, indices: Iterable[int]) -> list[str]:
    """Return what is odd about the pixels of some images, by DATA.PIXEL_RANGE, IMAGENET_MEAN and IMAGENET_STD.

    Images that cannot be read are left out.
    """
    form, data = PixelFormat.of_config(config), config.DATA
    low, high = (np.asarray(ends, np.float64) for ends in (form.low, form.high))
    counts, outside, sums = (np.zeros(form.channels) for _ in range(3))
    for index in indices:
        try:
            values, missing = form.values(form.select(source.numbers(int(index))))
        except Exception:  # damaged files raise nearly anything, and are named elsewhere
            continue
        shares = (np.where(missing, low, values) - low) / (high - low)
        counts += (~missing).sum(axis=(0, 1))
        outside += (~missing & ((shares < 0) | (shares > 1))).sum(axis=(0, 1))
        sums += np.where(missing, 0.0, np.clip(shares, 0, 1)).sum(axis=(0, 1))
    problems: list[str] = []
    problems += [
        f"channel {channel}: all its pixels are missing (DATA.NODATA, NaN)" for channel in np.flatnonzero(counts == 0)
    ]
    for channel in np.flatnonzero(counts):
        share, mean = outside[channel] / counts[channel], sums[channel] / counts[channel]
        expected, std = data.IMAGENET_MEAN[channel], data.IMAGENET_STD[channel]
        if share > _MOST_OUTSIDE:
            ends = f"{low[channel]:g} to {high[channel]:g}"
            what = f"are outside DATA.PIXEL_RANGE, {ends}, and are cut, as a window of CT means it"
            problems.append(f"channel {channel}: {share:.1%} of its pixels {what}")
        if abs(mean - expected) > _MOST_DEVIATIONS * std:
            which = f"DATA.IMAGENET_MEAN and IMAGENET_STD are {expected:g} and {std:g}"
            problems.append(f"channel {channel}: the mean of its pixels is {mean:.3g}, and {which}")
    advice = "python -m tools.channel_statistics finds the right settings"
    return [f"{source.origin}: {problem}; {advice}" for problem in problems]
