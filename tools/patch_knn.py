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

from arguments import Parser
from config import replaced
from errors import UserError
from launch import command_line, tool_flags
from measures import feature_cache
from measures.patch_segmentation import by_capi, by_hummingbird, read_patches
from methods import load_models, segmentation
from training import device

_HUMMINGBIRD_K = 30


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Print and return the scores, in percent."""
    parser = Parser(prog="python -m tools.patch_knn", description=__doc__)
    tool_flags.add_flags(parser, split=None)
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
    splits = segmentation.open_splits(replaced(config, "DATA.CLASS_NAMES", None))
    num_classes = splits[0].count_classes()
    order = np.random.default_rng(args.seed).permutation(len(splits[0]))[: args.num]
    print(f"patches of {len(order):,} training and {len(splits[1]):,} val images", flush=True)
    chosen = zip(splits, (order, np.arange(len(splits[1]))), strict=True)
    train, val = (read_patches(model, config, source, indices, args.layer) for source, indices in chosen)
    if args.protocol == "capi":
        figures = by_capi(train, val, ks, num_classes, args.seed)
    else:
        figures = by_hummingbird(train, val, ks[0], num_classes)
    return feature_cache.report(args, f"patch k-NN after {args.protocol}, {num_classes} classes", figures)


if __name__ == "__main__":
    command_line.run(main)
