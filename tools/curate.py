"""Look through a set of images: copies, leaks between splits, doubtful labels, outliers, quality, balance.

    python -m tools.curate -dataset folder -data_path DIR -out OUT             # by thumbnails alone
    python -m tools.curate RUN -data_path DIR -out OUT [-target N]             # by the features of an encoder, too

Writes groups.jsonl (images that show the same: file, pixels, near copies and crops, also mirrored), leaks.tsv (images
of val that train has), similar.tsv (alike, and not shown to be the same), labels.tsv, outliers.tsv, quality.tsv,
summary.json, and keep.txt for DATA.TRAIN_LIST: one image of each group, none that val has, and none that cannot be
read. Doubtful labels and outliers stay in it unless -drop names them: look at them first. With -target, balanced.txt
has that many images of keep.txt, from all regions of feature space alike. index.html shows all of it.
"""

import runtime

runtime.prepare()

import os
import platform
import resource
import time
from pathlib import Path

import numpy as np
import scipy
from PIL import Image

from arguments import Parser
from errors import UserError
from launch import command_line, tool_flags
from measures import feature_cache, neighbours
from measures.curation import alignment, balance, duplicates, findings, image_facts, thumbnails
from measures.curation.images import Images, open_splits
from pages import curation_tables as tables
from pages import explorer
from pipeline import name_lists
from storage import results

CACHE = "cache"
_DROPPED = ("labels", "outliers")
_WEAK = 0.7  # share of labels that neighbours have, too, below which these say little


def _parse(argv: list[str] | None):
    parser = Parser(prog="python -m tools.curate", description=__doc__)
    tool_flags.add_flags(parser, None, run_is_needed=False)
    parser.add("out", "directory for the results", required=True, metavar="DIR")
    parser.add("splits", "default: train, and val where there is one", nargs="+", choices=("train", "val"))
    parser.add("near", f"cosine of thumbnails that are looked at (default: {duplicates.NEAR})", type=tool_flags.share)
    parser.add("same", f"correlation of copies (default: {alignment.SAME})", type=tool_flags.share)
    parser.add("drop", "what keep.txt leaves out, too", nargs="+", default=[], choices=_DROPPED)
    parser.add("target", "images of balanced.txt", type=int, metavar="N")
    parser.add("seed", "of clusters and draws", type=tool_flags.natural, default=0)
    parser.add("map", "how the map is made (default: tsne)", choices=explorer.MAPS, default=explorer.MAPS[0])
    parser.add("workers", "processes that read images (default: one per core)", type=tool_flags.natural)
    parser.add("cache", "directory that keeps what was read (default: OUT/cache)", metavar="DIR")
    args = parser.parse_args(argv)
    if args.run is None and args.dataset is None and args.data_path is None:
        raise UserError("which images? -dataset NAME -data_path DIR, or a RUN with its data set")
    if args.target is not None and args.target < 1:
        raise UserError(f"-target {args.target}: must be at least 1")
    args.near, args.same = args.near or duplicates.NEAR, args.same or alignment.SAME
    args.workers = os.cpu_count() if args.workers is None else args.workers
    return args


def _vectors(args, config, images: Images, facts: np.ndarray, cache: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the descriptors of the readable images, [R, D] of length 1, and the features of RUN, if there is one.

    Descriptors are thumbnails, or these features, standardised: so the cosines of an MAE's features spread.
    """
    readable = np.flatnonzero(facts["problem"] == b"")
    if len(readable) == 0:
        raise UserError(f"none of the {len(images):,} images can be read; the first: {facts['problem'][0].decode()}")
    if args.run is None:
        return thumbnails.whole(facts["grey"][readable]), None
    parts = {split: images.subset(split, readable) for split in images.splits}
    features = feature_cache.mean_features(args.run, config, parts, cache)
    return neighbours.prepare(features, neighbours.Scaler.of(features, eps=1e-5), is_cosine=True), features


def _summary(args, found: findings.Findings, keep: np.ndarray, digest: str, notes: list[str]) -> dict[str, object]:
    """Return what summary.json has: it depends on the images and the flags alone."""
    images, kinds = found.images, [group.kind for group in found.groups]
    counts = {split: int((images.split == number).sum()) for number, split in enumerate(images.splits)}
    groups = {kind: kinds.count(number) for number, kind in enumerate(duplicates.KINDS)}
    return {
        "images": counts,
        "unreadable": int((found.facts["problem"] != b"").sum()),
        "groups": groups,
        "images in groups": sum(len(group.members) for group in found.groups),
        "images of val that train has": len({other for other, _ in found.leaks()}),
        "doubtful labels": len(found.labels),
        "copies with two labels": len(found.contradicted),
        "outliers": len(found.outliers),
        "kept": len(keep),
        **_balance(images),
        "labels that neighbours have, too": None if found.vote_accuracy is None else round(found.vote_accuracy, 4),
        "agreement with brute force": round(found.agreement, 4),
        "by": "thumbnails" if args.run is None else str(args.run),
        "thresholds": {"near": args.near, "same": args.same},
        "names": digest,
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "pillow": Image.__version__},
        "notes": _notes(found, notes),
    }


def _notes(found: findings.Findings, notes: list[str]) -> list[str]:
    accuracy = found.vote_accuracy
    if accuracy is None or accuracy >= _WEAK:
        return notes
    what = "they say little of labels; the features of a better encoder (RUN) say more"
    return [*notes, f"neighbours have the same label for {accuracy:.0%} of the images only: {what}"]


def _balance(images: Images) -> dict[str, object]:
    labels = images.labels[(images.split == 0) & (images.labels >= 0)]
    if not len(labels):
        return {}
    counts = np.bincount(labels)
    shares = counts[counts > 0] / len(labels)
    return {
        "classes": len(shares),
        "smallest class": f"{counts.min():,} images",
        "largest class": f"{counts.max():,} images",
        "effective number of classes": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
    }


def _comments(args, digest: str) -> list[str]:
    by = "thumbnails" if args.run is None else str(args.run)
    return [f"tools.curate by {by}: near {args.near}, same {args.same}", f"of the images {digest}"]


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Write the results, and return the summary."""
    args, started = _parse(argv), time.monotonic()
    config = tool_flags.read_config(args, "DATA.CLASS_NAMES", None)
    root = Path(config.DATA.DATA_PATH).resolve()
    if root.is_dir() and (root == Path(args.out).resolve() or root in Path(args.out).resolve().parents):
        raise UserError(f"-out {args.out}: lies in the data set, whose images its pictures would be; choose another")
    files = [*tables.FILES, tables.BALANCED, *explorer.FILES, CACHE]
    out = results.new_directory(args.out, [] if args.run is None else [args.run], writes=files)
    images, notes = open_splits(config, args.splits)
    results.claim(out, files)
    print("".join(f"note: {note}\n" for note in notes), end="")
    inputs, flag = [] if args.run is None else [args.run], "-out" if args.cache is None else "-cache"
    cache = results.new_directory(args.cache or out / CACHE, inputs, flag, image_facts.FILES)
    results.claim(cache, image_facts.FILES, flag)
    digest = images.digest()
    facts = image_facts.collect(images, args.workers, cache, {"version": 1, "images": digest})
    num_read = int((facts["problem"] == b"").sum())
    unread = len(images) - num_read
    print(f"{num_read:,} images are read" + f"; {unread:,} others cannot be" * bool(unread), flush=True)
    vectors, features = _vectors(args, config, images, facts, cache)
    readable = np.flatnonzero(facts["problem"] == b"")
    pairs, missed = duplicates.find(
        facts[readable], None if features is None else vectors, args.near, args.same, args.workers
    )
    found = findings.describe(images, facts, vectors, pairs)
    doubtful = [doubt.image for doubt in found.labels] + found.contradicted
    dropped = (doubtful if "labels" in args.drop else []) + (found.outliers.tolist() if "outliers" in args.drop else [])
    keep = found.keep(np.array(dropped, np.int64))
    summary = _summary(args, found, keep, digest, [*notes, *missed])
    print("".join(f"note: {note}\n" for note in summary["notes"][len(notes) :]), end="")
    tables.write(out, found, keep, _comments(args, digest), summary)
    if args.target is not None:
        places = np.searchsorted(readable, keep)
        # as in the paper: standardised, noise counts as much as what tells the images apart
        own = vectors[places] if features is None else neighbours.prepare(features[places], None, is_cosine=True)
        chosen = keep[balance.balanced(own, args.target, args.seed)]
        about = f"{len(chosen):,} of {len(keep):,} images, balanced with seed {args.seed}"
        name_lists.write(out / tables.BALANCED, map(images.name, chosen.tolist()), [*_comments(args, digest), about])
    explorer.write(out, found, keep, vectors, summary, args.map, args.seed)
    for name, value in summary.items():
        if isinstance(value, (int, float)) or name in ("images", "groups"):
            print(f"  {name}: {value}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Linux" else 2**30)
    print(f"{time.monotonic() - started:,.0f} s, at most {memory:.2f} GiB; wrote {out / explorer.PAGE}")
    return summary


if __name__ == "__main__":
    command_line.run(main)
