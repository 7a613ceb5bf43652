"""Cluster images by k-means in feature space, and compare the clusters with the classes.

    python -m tools.cluster RUN [-data_path DIR] [-split val] [-clusters 10] [-runs 3] [-seed 0]

Accuracy is that of the best assignment of clusters to classes (Hungarian method); NMI and ARI are the normalised
mutual information (arithmetic mean) and the adjusted Rand index. Features are scaled to length 1. scikit-learn does the
work, by mini-batches where there are more than 100,000 images. Mean and best of several runs are reported.
"""

import runtime

runtime.prepare()

import numpy as np

from arguments import Parser
from errors import UserError
from launch import command_line, tool_flags
from measures import feature_cache

_MANY = 100_000


def cluster(features: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """Return the cluster of each feature vector [N, D]."""
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.preprocessing import normalize

    if not 2 <= num_clusters <= len(features):
        raise UserError(f"-clusters {num_clusters}: must be from 2 to the number of images, {len(features)}")
    kind = KMeans if len(features) <= _MANY else MiniBatchKMeans
    return kind(num_clusters, n_init=1, random_state=seed).fit_predict(normalize(features))


def score(clusters: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compare clusters [N] with classes [N]: accuracy in percent, NMI and ARI."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(labels, clusters)
    matched = counts[linear_sum_assignment(-counts)].sum()
    return {
        "acc": 100.0 * float(matched) / len(labels),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Print and return the scores."""
    parser = Parser(prog="python -m tools.cluster", description=__doc__)
    feature_cache.add_feature_flags(parser, "val")
    feature_cache.add_pool_flag(parser)
    parser.add("clusters", "how many (default: as many as classes)", type=int)
    parser.add("runs", "with other random starts (default: 3)", type=int, default=3)
    parser.add("seed", "of the first run", type=tool_flags.natural, default=0)
    args = parser.parse_args(argv)
    if args.runs < 1 or (args.clusters is not None and args.clusters < 2):
        raise UserError("-runs must be at least 1, and -clusters at least 2")
    feature_cache.check_outputs(args)
    (data,) = feature_cache.split_features(args, args.split, pool=args.pool)
    count = len(np.unique(data["labels"])) if args.clusters is None else args.clusters
    scores = [score(cluster(data["features"], count, args.seed + run), data["labels"]) for run in range(args.runs)]
    figures = {}
    for name in scores[0]:
        values = [run[name] for run in scores]
        figures |= {f"{name}, mean": float(np.mean(values)), f"{name}, best": max(values)}
    return feature_cache.report(args, f"k-means, {count} clusters of {len(data['labels']):,} images", figures)


if __name__ == "__main__":
    command_line.run(main)
