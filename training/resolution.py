"""Stages of a pretraining that begins on smaller images (TRAIN.RESOLUTION; arXiv 2404.00509). No Paddle here.

The stage is a function of the epoch alone, so a resumed run is in the right one at once. The learning rate and the
images per update do not follow it.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from config import image_size_hw, replaced
from errors import UserError
from layers.patch_counts import check_masks, num_predicted, num_visible
from storage.architecture import Architecture
from training import flops


class Stage(NamedTuple):
    """Epochs with one size of the images.

    Attributes:
        first_epoch: from 0; the stage ends where the next one begins.
        config: the run's, with the stage's DATA.IMAGE_SIZE and MODEL.MASK_RATIO.
    """

    first_epoch: int
    config: object

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches per column and per row."""
        height, width = image_size_hw(self.config)
        return height // self.config.MODEL.PATCH_SIZE, width // self.config.MODEL.PATCH_SIZE


def stages(config) -> list[Stage]:
    """Return the stages of a run; one, of the configuration itself, where TRAIN.RESOLUTION names none.

    Raises:
        UserError: if no patch would be visible or predicted in one of them.
    """
    found = []
    for epoch, pixels, *ratio in config.TRAIN.get("RESOLUTION") or []:
        changed = replaced(config, "DATA.IMAGE_SIZE", pixels)
        found.append(Stage(epoch, replaced(changed, "MODEL.MASK_RATIO", *ratio) if ratio else changed))
        try:
            _check_counts(found[-1])
        except UserError as error:
            raise UserError(f"TRAIN.RESOLUTION, the stage of {pixels} pixels: {error}") from error
    if not found and config.TRAIN.get("MASKS", 1) > 1:
        _check_counts(Stage(0, config))
    return found or [Stage(0, config)]


def _check_counts(stage: Stage) -> None:
    """Raise UserError if no patch would be visible or predicted, or masks would have to share visible ones."""
    num_patches, ratios = math.prod(stage.grid_hw), flops.ratios(stage.config)
    num_predicted(num_patches, *ratios)
    check_masks(stage.config.TRAIN.MASKS, num_patches, ratios[0])


def stage_at(all_stages: Sequence[Stage], epoch: int) -> int:
    """Return the index of the stage that an epoch belongs to."""
    return max(index for index, stage in enumerate(all_stages) if stage.first_epoch <= epoch)


def of_stage(architecture: Architecture, stage: Stage) -> Architecture:
    """Return what a network computes in a stage: its architecture with the grid of the stage's images."""
    return dataclasses.replace(architecture, grid_hw=stage.grid_hw)


def work(all_stages: Sequence[Stage], costs: Sequence[float], updates_per_epoch: int, start: int, end: int) -> float:
    """Return the cost of the updates from `start` to `end` (not included).

    Args:
        costs: of an update of each stage.
    """
    first = [stage.first_epoch * updates_per_epoch for stage in all_stages]
    spans = zip(first, [*first[1:], math.inf], strict=True)
    counts = [max(0, min(end, after) - max(start, own)) for own, after in spans]
    return sum(count * cost for count, cost in zip(counts, costs, strict=True))


def describe(architecture: Architecture, all_stages: Sequence[Stage]) -> list[str]:
    """Return a line for each stage; none for a run of one size."""
    lines = []
    for stage in all_stages if len(all_stages) > 1 else ():
        ratio, num_patches = stage.config.MODEL.MASK_RATIO, math.prod(stage.grid_hw)
        macs = flops.forward_macs(of_stage(architecture, stage), *flops.ratios(stage.config))
        lines.append(
            f"resolution: {stage.config.DATA.IMAGE_SIZE} pixels from epoch {stage.first_epoch} on, "
            f"{num_visible(num_patches, ratio)} of {num_patches} patches visible, {macs / 1e9:.3g} GMAC per image"
        )
    return lines
