"""Make an image-text data set of one with class labels: WebDataset shards with captions and several labels.

    python -m tools.caption_dataset -dataset cifar10 -data_path DIR -out DIR [-languages en fr]

Each training image comes once per language, with a caption from a sentence of configs/prompts, drawn at random, and
with two labels: its class, and its group (animal or vehicle) behind the classes. For trying weakly supervised and
image-text training without a download.
"""

import runtime

runtime.prepare()

import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

import datasets
from arguments import Parser
from config import DATASETS
from errors import UserError
from launch import command_line
from pipeline import prompts
from pipeline.shard_writer import open_shard, write_sample
from pipeline.sources import Source, describe_unreadable, read_image
from program import terminal
from storage import atomic, results

_PER_SHARD = 2000


def samples(source: Source, named: str, languages: list[str], seed: int) -> Iterator[tuple[int, str, list[int]]]:
    """Yield (image, caption, labels) of each sample, in random order.

    Args:
        named: data set whose class names are meant.
    """
    templates = {language: prompts.language_templates(language) for language in languages}
    names = {language: prompts.language_class_names(language, named, source.class_names) for language in languages}
    num_classes, groups = len(names[languages[0]]), list(prompts.class_groups(named).values())
    rng = np.random.default_rng(seed)
    for number in rng.permutation(len(source) * len(languages)).tolist():
        index, language = number // len(languages), languages[number % len(languages)]
        label = int(source.labels[index])
        template, name = rng.choice(templates[language]), rng.choice(names[language][label])
        own_groups = [num_classes + group for group, members in enumerate(groups) if label in members]
        yield index, str(template).replace("{}", str(name)), [label, *own_groups]


def write(source: Source, named: str, languages: list[str], out: Path, channels: int, seed: int = 0) -> int:
    """Write the shards below `out`/train; returns the number of samples."""
    (out / "train").mkdir(exist_ok=True)
    total = len(source) * len(languages)
    bar = tqdm(samples(source, named, languages, seed), total=total, disable=None, file=terminal(sys.stderr))
    waiting, number = iter(bar), 0
    while batch := list(itertools.islice(waiting, _PER_SHARD)):
        shard = out / "train" / f"{number:05d}.tar"
        with atomic.replacing(shard) as path, open_shard(path) as tar:
            for place, (index, caption, labels) in enumerate(batch):
                try:
                    image = read_image(source, index, channels)
                except Exception as error:  # damaged files raise nearly anything
                    raise UserError(describe_unreadable(source, index, error)) from error
                pixels = io.BytesIO()
                image.save(pixels, "PNG")
                name = f"{number * _PER_SHARD + place:08d}"
                write_sample(tar, name, ".png", pixels.getvalue(), caption, labels)
        number += 1
    return total


def main(argv: list[str] | None = None) -> None:
    """Write the data set."""
    parser = Parser(prog="python -m tools.caption_dataset", description=__doc__.partition("\n")[0])
    parser.add("dataset", "with class labels, as in training", choices=DATASETS, required=True)
    parser.add("data_path", "as in training", default=".", metavar="DIR")
    parser.add("names", "data set whose class names are meant (default: that of -dataset)", metavar="NAME")
    parser.add("out", "a new directory", required=True, metavar="DIR")
    parser.add("languages", f"of the captions: {', '.join(prompts.LANGUAGES)} (default: en)", nargs="+", default=["en"])
    args = parser.parse_args(argv)
    named = args.names or args.dataset
    source = datasets.open_source(args.dataset, args.data_path, "train", num_classes=10)
    own = None if args.names else source.class_names
    for language in args.languages:
        num_names = len(prompts.language_class_names(language, named, own))
        if num_names != source.count_classes() or source.labels.min() < 0:
            count = source.count_classes()
            raise UserError(f"{source.origin}: has {count} classes, all images must have one, and {named} {num_names}")
    out = results.new_directory(args.out)
    if any(out.iterdir()):
        raise UserError(f"-out {out}: is not empty; choose another directory")
    channels = 1 if args.dataset == "digits" else 3
    total = write(source, named, args.languages, out, channels)
    print(f"wrote {total:,} samples to {out}; use it with -dataset webdataset -data_path {out}")
    texts = out / "captions.txt"
    texts.write_text("\n".join(caption for _, caption, _ in samples(source, named, args.languages, 0)) + "\n")
    print(f"wrote {texts}, for a tokenizer, see docs/billion_scale.md")


if __name__ == "__main__":
    command_line.run(main)
