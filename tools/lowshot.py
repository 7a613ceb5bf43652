"""Classify images by logistic regression on a few labelled ones per class.

    python -m tools.lowshot RUN [-data_path DIR] [-shots 1 2 5 13] [-splits 3] [-seed 0] [-list FILE [FILE ...]]

Draws -shots images per class from the train split, -splits times, fits multinomial logistic regression on their
features (scikit-learn's L-BFGS), and reports mean and standard deviation of the accuracy on the val split. `-list`
takes given splits instead: text files with the name of an image per line, as published for ImageNet; folder/name where
several images have that name. Features are centred and scaled to length 1 per image, there is no intercept, and the
penalty is 0.00025 / 2 |W|^2 beside the summed loss, which is what MAE-CT uses (C = 4000).
"""

import runtime

runtime.prepare()

import numpy as np

from arguments import Parser
from errors import UserError
from launch import command_line, tool_flags
from measures import feature_cache, image_sets
from measures.few_shots import draw, fit_and_score
from pipeline.name_lists import find_listed


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Print and return the accuracies, in percent."""
    parser = Parser(prog="python -m tools.lowshot", description=__doc__)
    feature_cache.add_feature_flags(parser)
    feature_cache.add_pool_flag(parser)
    parser.add("shots", "images per class (default: 1 2 5 13)", type=int, nargs="+", default=[1, 2, 5, 13])
    parser.add("splits", "draws of each (default: 3)", type=int, default=3)
    parser.add("seed", "of the draws", type=tool_flags.natural, default=0)
    parser.add("list", "given splits instead", nargs="+", default=[], metavar="FILE")
    args = parser.parse_args(argv)
    if min(args.splits, *args.shots) < 1:
        raise UserError("-shots and -splits must be at least 1")
    feature_cache.check_outputs(args)
    source = image_sets.open_images(tool_flags.read_config(args), "train")
    lists = [find_listed(source, path, "-list") for path in args.list]
    for shots in [] if lists else args.shots:
        draw(source.labels, shots, args.seed)  # says at once if there are too few images
    train, val = feature_cache.split_features(args, "train", "val", pool=args.pool)
    labels = train["labels"]
    if lists and len(labels) < len(source):
        raise UserError(
            f"-list: {len(source) - len(labels)} training images were skipped; remove them from the data set"
        )
    draws = (
        {"given splits": lists}
        if lists
        else {
            f"{shots} per class": [draw(labels, shots, args.seed + split) for split in range(args.splits)]
            for shots in args.shots
        }
    )
    figures = {}
    for name, chosen in draws.items():
        scores = [fit_and_score(train, indices, val) for indices in chosen]
        figures[f"acc1, {name}"] = float(np.mean(scores))
        figures[f"deviation, {name}"] = float(np.std(scores))
    return feature_cache.report(args, f"logistic regression, {len(next(iter(draws.values())))} splits", figures)


if __name__ == "__main__":
    command_line.run(main)
