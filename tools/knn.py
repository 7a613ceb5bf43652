"""Classify images by their nearest neighbours in feature space, without training anything.

    python -m tools.knn RUN [-data_path DIR] [-k 1 5 10 20] [-temperature 0.07] [-pool cls] [-standardise] [-cache DIR]

The features of the train split are the bank, those of the val split are asked for. Similarity is the cosine; each of
the k nearest votes for its class with weight exp(similarity / temperature) (Wu et al., arXiv 1805.01978). `-cache`
keeps the features in memory-mapped files, and takes them from there the next time. In memory are the bank, scaled to
length 1 (twice, for a moment), and 256 queries' similarities to all of it.
"""

import runtime

runtime.prepare()


import numpy as np

from arguments import Parser, finite
from errors import UserError
from launch import command_line
from measures import feature_cache
from measures.neighbours import classify


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Print and return the accuracies, in percent."""
    parser = Parser(prog="python -m tools.knn", description=__doc__)
    feature_cache.add_feature_flags(parser)
    feature_cache.add_pool_flag(parser)
    parser.add("k", "numbers of neighbours (default: 1 5 10 20)", type=int, nargs="+", default=[1, 5, 10, 20])
    parser.add("temperature", "of the votes (default: 0.07)", type=finite, default=0.07)
    parser.add("standardise", "features by the training images' mean and deviation", action="store_true")
    args = parser.parse_args(argv)
    if args.temperature <= 0:
        raise UserError(f"-temperature {args.temperature}: must be above 0")
    if min(args.k) < 1:
        raise UserError(f"-k {min(args.k)}: must be at least 1")
    feature_cache.check_outputs(args)
    train, val = feature_cache.split_features(args, "train", "val", pool=args.pool, neighbours=max(args.k))
    found = classify(train["features"], train["labels"], val["features"], args.k, args.temperature, args.standardise)
    figures = {f"acc1, k={k}": 100 * float(np.mean(classes == val["labels"])) for k, classes in found.items()}
    title = f"k-NN, {len(val['labels']):,} images by {len(train['labels']):,}, cosine, temperature {args.temperature}"
    return feature_cache.report(args, title, figures)


if __name__ == "__main__":
    command_line.run(main)
