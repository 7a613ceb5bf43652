"""Start a run of a method: load a pretrained encoder, and check the settings of a loss over whole batches."""

from paddle import nn

import checkpoint
from errors import UserError
from training.run import Run


def has_weights_to_load(run: Run) -> bool:
    """Return True if a new run names -pretrained weights; warn if it does not. A resumed run restores all of them."""
    if run.resume_from is not None:
        return False
    if not run.config.MODEL.PRETRAINED:
        run.log.say("warning: no -pretrained weights, so the encoder starts from its initialisation")
    return bool(run.config.MODEL.PRETRAINED)


def load_encoder(run: Run, encoder: nn.Layer) -> None:
    """Load the encoder of -pretrained into a network from images to features; classifiers and decoders are ignored."""
    if has_weights_to_load(run):
        model = run.config.MODEL
        run.log.say(str(checkpoint.load_encoder(encoder, model.PRETRAINED, adapt=model.ADAPT_CHANNELS)))


_PIXELS = ("PIXELS", "PIXEL_RANGE", "PIXEL_SCALE", "BANDS", "NODATA", "IMAGENET_MEAN", "IMAGENET_STD")


def pixel_differences(config) -> list[str]:
    """Return what differs between the pixels of a run on arrays and those that its weights were trained on.

    A range, an order of bands or a normalisation that is another one gives a model other numbers than it knows.
    """
    weights, data = config.MODEL.PRETRAINED, config.DATA
    theirs = {key: checkpoint.recorded_setting(weights, "DATA", key) for key in _PIXELS}
    if data.PIXELS == "photo" and theirs["PIXELS"] in (None, "photo"):
        return []
    own = {key: data[key] for key in _PIXELS}
    if theirs["IMAGENET_MEAN"] is not None and len(theirs["IMAGENET_MEAN"]) != data.IMAGE_CHANNELS:
        return []  # MODEL.ADAPT_CHANNELS: other images, on purpose
    channels = list(range(data.IMAGE_CHANNELS))
    for values in (own, theirs):  # two ways to say the same
        values["BANDS"] = channels if values["BANDS"] is None else values["BANDS"]
        ends = values["PIXEL_RANGE"]
        if isinstance(ends, list) and ends and isinstance(ends[0], list) and all(pair == ends[0] for pair in ends):
            values["PIXEL_RANGE"] = ends[0]
    return [
        f"{weights} was trained with DATA.{key} {theirs[key]}, and this run has {own[key]}; set it so, or know why not"
        for key in _PIXELS
        if theirs["IMAGENET_MEAN"] is not None and own[key] != theirs[key]
    ]


def check_whole_batch(config) -> None:
    """Raise UserError where an update would be made of less than a whole batch at once."""
    train, data = config.TRAIN, config.DATA
    reason = f"the loss of MODEL.TYPE {config.MODEL.TYPE} is over all images of an update"
    if train.ACCUM_ITER != 1:
        what = "set it to 1, with more processes or a smaller total batch"
        raise UserError(f"TRAIN.ACCUM_ITER={train.ACCUM_ITER}: {reason}; {what}")
    if not data.DROP_LAST:
        raise UserError(f"DATA.DROP_LAST=False: {reason}, and a smaller last batch would change it; set it to True")
