"""Divide folders of classes into a train and a val list, with all copies of an image on one side.

    python -m tools.split DIR [-val 0.1] [-seed 0] [-groups OUT/groups.jsonl]

DIR has <class>/*.jpg. Writes train_list.txt and val_list.txt ("path label" per line) and classes.txt into DIR, which
-dataset imagenet2012 -data_path DIR reads then. Of each class, the share -val of the images goes to val, as nearly as
its groups of copies allow, and at least one. The groups are those of tools.curate on the same images, or are found
here by thumbnails.
"""

import runtime

runtime.prepare()

import collections
import json
import os
import tempfile
from pathlib import Path

import numpy as np

import datasets
from arguments import Parser
from errors import UserError, abridge, printable
from launch import command_line, tool_flags
from measures.curation import alignment, duplicates, image_facts
from measures.curation.images import Images
from pipeline.name_lists import as_line
from storage import atomic, results
from storage.files import read_lines

FILES = ("train_list.txt", "val_list.txt", "classes.txt")


def find_groups(images: Images) -> np.ndarray:
    """Return the group of each image, [N], by thumbnails; an image that cannot be read is alone."""
    with tempfile.TemporaryDirectory() as cache:
        facts = image_facts.collect(images, os.cpu_count(), Path(cache), {})
        readable = np.flatnonzero(facts["problem"] == b"")
        group = np.arange(len(images))
        if len(readable) > 1:
            pairs, notes = duplicates.find(facts[readable], None, duplicates.NEAR, alignment.SAME, os.cpu_count())
            print("".join(f"note: {note}\n" for note in notes), end="")
            group[readable] = readable[duplicates.groups(pairs, len(readable))]
    unread = [images.name(number) for number in np.setdiff1d(np.arange(len(images)), readable).tolist()]
    if unread:
        print(f"warning: {len(unread):,} images cannot be read: {abridge(unread, 3)}")
    return group


def read_groups(file: str, images: Images) -> np.ndarray:
    """Return the group of each image, [N], from groups.jsonl.

    Raises:
        UserError: if the file is damaged, or names other images.
    """
    number_of = {images.name(number): number for number in range(len(images))}
    group = np.arange(len(images))
    for number, line in enumerate(read_lines(file, "-groups "), 1):
        try:
            members = [number_of[member["name"]] for member in json.loads(line)["members"]]
            group[members] = min(members)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"-groups {file}: line {number} does not name images of {images.sources['train'].origin}; is it the "
                "groups.jsonl of tools.curate for this directory?"
            ) from error
    return group


def divide(labels: np.ndarray, group: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return which images are val, [N] bool: whole groups, a share of each class.

    Groups with images of several classes are trained on, whole.

    Args:
        labels, group: [N].
    """
    rng, is_val = np.random.default_rng(seed), np.zeros(len(labels), bool)
    classes_of = collections.defaultdict(set)
    for label, own in zip(labels.tolist(), group.tolist(), strict=True):
        classes_of[own].add(label)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        heads, counts = np.unique(group[members], return_counts=True)
        left = min(max(1, round(share * len(members))), len(members) - 1)
        for place in rng.permutation(len(heads)):
            if counts[place] <= left and len(classes_of[int(heads[place])]) == 1:
                is_val[members[group[members] == heads[place]]] = True
                left -= int(counts[place])
    return is_val


def main(argv: list[str] | None = None) -> np.ndarray:
    """Write the lists, and return which images are val."""
    parser = Parser(prog="python -m tools.split", description=__doc__)
    parser.add_argument("directory", metavar="DIR", help="folders of classes")
    parser.add("val", "share of each class (default: 0.1)", type=tool_flags.share, default=0.1, metavar="SHARE")
    parser.add("seed", "of the draw", type=tool_flags.natural, default=0)
    parser.add("groups", "groups.jsonl of tools.curate on these images", metavar="FILE")
    args = parser.parse_args(argv)
    source, root = datasets.open_class_folders(args.directory), Path(args.directory)
    if source is None:
        raise UserError(f"{root}: expected folders of classes, <class>/*.jpg, and no folder train")
    results.new_directory(root, writes=FILES)
    print("".join(f"warning: {note}\n" for note in source.notes), end="")
    images = Images({"train": source})
    odd = [printable(name) for name in source.names() if as_line(name) != name]
    if odd:
        what = "have line breaks, backslashes, or white space or # at the start"
        raise UserError(
            f"{root}: {len(odd):,} names {what}, which a list does not hold: {abridge(odd, 3)}; rename them"
        )
    group = find_groups(images) if args.groups is None else read_groups(args.groups, images)
    is_val = divide(images.labels, group, args.val, args.seed)
    results.claim(root, FILES)
    for name, chosen in zip(FILES, (~is_val, is_val), strict=False):
        lines = [f"{images.name(number)} {images.labels[number]}\n" for number in np.flatnonzero(chosen).tolist()]
        atomic.write_text(root / name, "".join(lines))
    atomic.write_text(root / FILES[2], "".join(f"{as_line(name)}\n" for name in source.class_names))
    without = [source.class_names[label] for label in np.setdiff1d(images.labels, images.labels[is_val]).tolist()]
    if without:
        what = "one image, or groups of copies that are too large"
        print(f"warning: {len(without):,} classes have no image in val, as they have {what}: {abridge(without, 5)}")
    torn = len(images) - len(np.unique(group))
    print(
        f"train: {int((~is_val).sum()):,} images, val: {int(is_val.sum()):,}, of {len(source.class_names):,} classes; "
        f"{torn:,} images are copies of others, and on their side; seed {args.seed}, share {args.val}"
    )
    print(f"wrote {root / FILES[0]} and {FILES[1]}; -dataset imagenet2012 -data_path {root} reads them")
    return is_val


if __name__ == "__main__":
    command_line.run(main)
