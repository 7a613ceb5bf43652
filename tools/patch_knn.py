"""Segment images by their patches' nearest neighbours in feature space, without training anything.

    python -m tools.patch_knn RUN -dataset scenes [-data_path DIR] [-protocol capi] [-k 1 3 10 30] [-json FILE]

The patches of the train split are the bank, and those of the val split are asked for. Images are resized to
`-image_size` whatever their shape, masks by the nearest pixel, and the scores are at that size.

`-protocol capi` (arXiv 2502.08769): features are standardised by the bank; each pixel of a patch takes the most
frequent label of the same place in the k nearest patches. k and the distance (cosine or L2) are those with the best
mIoU on a random tenth of the training images, and the bank then has all of them. A pixel that is voted to be of no
class counts as wrong.
`-protocol hummingbird` (arXiv 2306.01667): the k nearest patches (30) by the cosine give their shares of classes,
weighted by a softmax at temperature 0.02, which are enlarged bilinearly. Neither augmentation nor sampling of the bank.

`-num` limits the training images, as the bank is in memory: N images of 224 pixels take 0.6 MB each at width 768.
"""

import runtime

runtime.prepare()

import numpy as np
import paddle

from arguments import Parser
from config import image_size_hw
from errors import UserError
from launch import command_line, tool_flags
from measures import feature_cache, patch_search
from measures.extraction import extract
from methods import load_models, segmentation, segmentation_scores
from pipeline import augment, sources
from pipeline.masks import resize_mask
from pipeline.transforms import eval_transform
from training import device, loaders

_TEMPERATURE, _HUMMINGBIRD_K = 0.02, 30
_DISTANCES = ("cosine", "l2")
_HELD_OUT = 0.1
_ROWS = 8192  # patches that are asked for at a time


class Patches:
    """The patches of some images, and their masks at the size of the network's input.

    Args:
        model: encoder.
        source: has masks.
        indices: of the images.
        layer: of which the patches are, behind the encoder's last norm; None: the last one.
    """

    def __init__(self, model, config, source: sources.Source, indices: np.ndarray, layer: int | None):
        size_hw, data = image_size_hw(config), config.DATA
        layer = len(model.encoder.layers) if layer is None else layer
        normalise, features, masks = eval_transform(config).normalise, [], []
        for first in range(0, len(indices), data.BATCH_SIZE):
            pixels = []
            for index in indices[first : first + data.BATCH_SIZE]:
                image, labels = sources.read_pair(source, int(index), data.IMAGE_CHANNELS, data.EXIF_TRANSPOSE)
                pixels.append(augment.as_pixels(augment.squash(image, size_hw)))
                masks.append(resize_mask(labels, size_hw))
            tokens = extract(model, normalise(paddle.to_tensor(np.stack(pixels))), [layer], "tokens", norm=True)[layer]
            features.append(tokens[:, 1:].astype("float32").flatten(0, 1).numpy())
        self.features, self.masks = np.concatenate(features), np.stack(masks)
        self.num_patches = len(self.features) // len(self.masks)

    def take(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features [n, D] and masks [B, H, W] of some of the images."""
        rows = (images[:, None] * self.num_patches + np.arange(self.num_patches)).ravel()
        return self.features[rows], self.masks[images]


def segment_by_votes(
    bank: tuple[np.ndarray, np.ndarray], asked: np.ndarray, patch_px: int, ks: list[int], distance: str
) -> dict[int, np.ndarray]:
    """Return {k: labels of the pixels of each patch [m, P]} by CAPI's rule.

    Args:
        bank: features [n, D] and masks [B, H, W].
        asked: features [m, D].
    """
    features, labels = bank[0], patch_search.patch_labels(bank[1], patch_px)
    kept = patch_search.vote(labels[..., None])[:, 0] >= 0  # its most frequent label
    features, labels = features[kept], labels[kept]
    scaler = patch_search.Scaler(features)
    most = min(max(ks), len(features))
    found = {k: [] for k in ks}
    bank_features = scaler(features)
    for first in range(0, len(asked), _ROWS):
        places, _ = patch_search.nearest(bank_features, scaler(asked[first : first + _ROWS]), most, distance)
        for k in ks:
            found[k].append(patch_search.vote(labels[places[:, :k]]))
    return {k: np.concatenate(parts) for k, parts in found.items()}


def by_capi(train: Patches, val: Patches, patch_px: int, grid_hw, ks: list[int], num_classes: int, seed: int) -> dict:
    """Return the scores on val, and the k and the distance that a tenth of the training images has chosen."""
    order = np.random.default_rng(seed).permutation(len(train.masks))
    count = max(1, round(_HELD_OUT * len(order)))
    held, others = train.take(order[:count]), train.take(order[count:])
    tried = {}
    for distance in _DISTANCES if len(order) > count else ():
        for k, labels in segment_by_votes(others, held[0], patch_px, ks, distance).items():
            counts = _count(held[1], labels, patch_px, grid_hw, num_classes)
            tried[k, distance] = segmentation_scores.scores(counts)["miou"]
            print(f"  {distance}, k={k}: {tried[k, distance]:.2f} on a tenth of the training images", flush=True)
    k, distance = max(tried, key=tried.get) if tried else (ks[0], _DISTANCES[0])
    labels = segment_by_votes((train.features, train.masks), val.features, patch_px, [k], distance)[k]
    counts = _count(val.masks, labels, patch_px, grid_hw, num_classes)
    return segmentation_scores.scores(counts) | {"k": k, "distance": distance}


def _count(masks: np.ndarray, labels: np.ndarray, patch_px: int, grid_hw, num_classes: int) -> np.ndarray:
    predicted = patch_search.join_patches(labels, grid_hw, patch_px)
    return segmentation_scores.confusion(masks, predicted, num_classes)


def by_hummingbird(train: Patches, val: Patches, patch_px: int, grid_hw, k: int, num_classes: int) -> dict:
    """Return the scores on val."""
    shares = patch_search.class_shares(patch_search.patch_labels(train.masks, patch_px), num_classes)
    most, per_image = min(k, len(shares)), val.num_patches
    counts = np.zeros((num_classes, num_classes + 1), np.int64)
    for image, truth in enumerate(val.masks):
        asked = val.features[image * per_image : (image + 1) * per_image]
        places, likeness = patch_search.nearest(train.features, asked, most, "cosine")
        scores = patch_search.blend(shares[places], likeness, _TEMPERATURE)
        predicted = patch_search.enlarge(scores, grid_hw, truth.shape)[0]
        counts += segmentation_scores.confusion(truth, predicted, num_classes)
    return segmentation_scores.scores(counts) | {"k": k, "distance": "cosine"}


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Print and return the scores, in percent."""
    parser = Parser(prog="python -m tools.patch_knn", description=__doc__)
    tool_flags.add_flags(parser)
    parser.add("json", "write the figures to this file, too", metavar="FILE")
    parser.add("protocol", "capi (default) or hummingbird", choices=("capi", "hummingbird"), default="capi")
    parser.add("k", "neighbours: CAPI chooses among several (default: 1 3 10 30)", type=int, nargs="+")
    parser.add("layer", "block, counted from 1; -1 is the last (default)", type=int)
    parser.add("num", "training images at most (default: all)", type=int)
    parser.add("seed", "of the choice of images", type=tool_flags.natural, default=0)
    args = parser.parse_args(argv)
    ks = args.k or ([1, 3, 10, 30] if args.protocol == "capi" else [_HUMMINGBIRD_K])
    if min(ks) < 1 or (args.num is not None and args.num < 2):
        raise UserError("-k must be at least 1, and -num at least 2")
    if args.protocol == "hummingbird" and len(ks) > 1:
        raise UserError(f"-k {' '.join(map(str, ks))}: hummingbird takes one; capi chooses among several")
    feature_cache.check_outputs(args)
    device.set_device()
    model, config = load_models.load_encoder(args.run, tool_flags.read_config(args))
    splits = {split: loaders.open_source(config, split, segmentation.TARGET) for split in ("train", "val")}
    num_classes = splits["train"].count_classes()
    order = np.random.default_rng(args.seed).permutation(len(splits["train"]))[: args.num]
    chosen = {"train": order, "val": np.arange(len(splits["val"]))}
    print(f"patches of {len(order):,} training and {len(splits['val']):,} val images", flush=True)
    train, val = (Patches(model, config, splits[split], chosen[split], args.layer) for split in splits)
    patch_px, grid_hw = model.patch_embedding.patch_size, model.patch_embedding.grid_hw
    if args.protocol == "capi":
        figures = by_capi(train, val, patch_px, grid_hw, ks, num_classes, args.seed)
    else:
        figures = by_hummingbird(train, val, patch_px, grid_hw, ks[0], num_classes)
    return feature_cache.report(args, f"patch k-NN after {args.protocol}, {num_classes} classes", figures)


if __name__ == "__main__":
    command_line.run(main)
