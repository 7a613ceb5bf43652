"""How many patches an autoencoder sees, and predicts. No Paddle here."""

from errors import UserError

_ROUNDING = 1e-6  # 100 * (1 - 0.9) is 9.999999999999998


def num_visible(num_patches: int, mask_ratio: float) -> int:
    """Return K, the number of patches that stay visible: N * (1 - ratio), rounded down."""
    num_kept = int(num_patches * (1 - mask_ratio) + _ROUNDING)
    if not 1 <= num_kept <= num_patches:
        raise UserError(
            f"MODEL.MASK_RATIO={mask_ratio}: keeps {num_kept} of {num_patches} patches; it must keep at least one"
        )
    return num_kept


def num_predicted(num_patches: int, mask_ratio: float, predict_ratio: float | None) -> int:
    """Return M, the number of hidden patches that are predicted: all but N * (mask ratio - predict ratio).

    That number is rounded down, as in CrossMAE's official code: of 196 patches, of which 147 are hidden, 0.15 are 30.
    None: all that are hidden.
    """
    num_hidden = num_patches - num_visible(num_patches, mask_ratio)
    if predict_ratio is None:
        return num_hidden
    is_share = 0 < predict_ratio <= mask_ratio
    ignored = int(num_patches * (mask_ratio - predict_ratio) + _ROUNDING) if is_share else num_hidden
    if ignored >= num_hidden:
        raise UserError(
            f"MODEL.PREDICT_RATIO={predict_ratio}: must be above 0, and at most MODEL.MASK_RATIO, which is {mask_ratio}"
        )
    return num_hidden - ignored


def check_masks(num_masks: int, num_patches: int, mask_ratio: float) -> None:
    """Raise UserError if there are not enough patches for masks that show different ones."""
    num_kept = num_visible(num_patches, mask_ratio)
    if num_masks * num_kept > num_patches:
        raise UserError(
            f"TRAIN.MASKS={num_masks}: each shows {num_kept} of {num_patches} patches, which allows at most "
            f"{num_patches // num_kept}, or a larger mask ratio"
        )
