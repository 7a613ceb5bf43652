"""Label photos with a classifier, or their pixels with a segmenter: as a table, a page, folders, or masks.

    python -m tools.predict RUN photos/                            # writes predictions.csv
    python -m tools.predict RUN a.jpg b.jpg -out labels.jsonl -html page.html
    python -m tools.predict CLIP photos/ -texts "a cat" "a dog" -move sorted
    python -m tools.predict SEGMENTER photos/ -masks out           # writes out/masks/*.png and out/overlays/*.jpg

RUN is a finetuning, probing or segmentation run, one of its checkpoints, a ported file with its YAML, or a CLIP model
with -texts. Photos are files and folders, or one list (.txt, .tsv, .jsonl: a path per line), or one folder of shards.
The table has a row for each photo; one that cannot be read has the reason in it. A command that was stopped resumes
when it is given again. -move moves each photo into the folder of its likeliest class, and records from where.

Of a segmenter, the table has the classes that cover the most of each photo, and their shares. -masks gets a PNG of the
photo's size for each, with the number of the class in each pixel (`classes.txt` has the names), and the photo with
its classes painted over it. From Python:

    from tools.predict import load, predict, segment
"""

import runtime

runtime.prepare()

import collections
import os
from pathlib import Path

import numpy as np

from arguments import Parser
from errors import UserError, abridge
from launch import command_line, tool_flags
from measures import prediction
from measures.prediction import load as load
from measures.prediction import predict as predict
from measures.prediction import segment as segment
from pages import prediction_table
from pages.mask_files import MASKS, OVERLAYS, MaskFiles
from pages.prediction_page import Summary, write_page
from pipeline.sources import Source
from pipeline.wrapped_sources import Subset
from storage import results
from training import device

_SHOWN = 10  # photos whose classes are printed, and classes whose numbers are


def _parse(argv: list[str] | None):
    parser = Parser(prog="python -m tools.predict", description=__doc__)
    parser.add_argument("run", help="run, checkpoint directory, or weight file with its YAML beside it")
    parser.add_argument("photos", nargs="+", help="files and folders; or one list, or one folder of shards")
    parser.add("out", "table: .csv, .jsonl or .parquet (default: predictions.csv)", default="predictions.csv")
    parser.add("topk", "classes of each photo (default: 5)", type=int, default=5, metavar="K")
    parser.add("html", "page with thumbnails, the least certain photos first", metavar="FILE")
    parser.add("move", "directory for a folder of photos per class", metavar="DIR")
    parser.add("masks", "directory for the masks and overlays of a segmenter", metavar="DIR")
    parser.add("texts", "classes of a CLIP model, each a name or a sentence", nargs="+", default=[], metavar="TEXT")
    parser.add("image_size", "pixels, instead of the run's own", metavar="PX")
    parser.add("batch_size", "photos at a time (default: 32)", type=int, default=32, metavar="N")
    parser.add("opts", "settings of the configuration: KEY VALUE or KEY=VALUE", nargs="+", action="extend", default=[])
    args = parser.parse_args(argv)
    if args.topk < 1:
        raise UserError(f"-topk {args.topk}: must be at least 1")
    return args


def main(argv: list[str] | None = None) -> Path:
    """Write the predictions, and return the table's path."""
    args = _parse(argv)
    inputs = [args.run, *(photo for photo in args.photos if not Path(photo).is_dir())]
    out = prediction_table.check_out(args.out, inputs)
    page = results.new_file(args.html, ".html", flag="-html", inputs=inputs) if args.html else None
    folder = _check_move(args.move)
    device.set_device()
    model = prediction.load(args.run, tool_flags.read_config(args), args.texts)
    masks = _check_masks(args, model)
    topk = min(args.topk, len(model.class_names))
    words = [*args.photos, topk, args.move or "", args.masks or ""]
    progress = prediction_table.Progress(
        out, prediction_table.fingerprint(words, args.run, model.config, model.class_names)
    )
    summary = Summary()
    if progress.moves:  # the table and the page are written, and the list of photos has changed
        collections.deque(summary.watch(progress.rows()), maxlen=0)
    else:
        source = prediction.open_photos(args.photos, model.config)
        if folder is not None and source.path(0) is None:
            raise UserError(f"-move {args.move}: photos in shards cannot be moved")
        print("".join(f"warning: {note}\n" for note in source.notes), end="")
        files = None if masks is None else MaskFiles(masks, model, source)
        _predict(model, source, topk, progress, files)
        prediction_table.write(out, summary.watch(progress.rows()), topk)
        if page is not None:
            title, data = f"{len(source):,} photos by {args.run}", model.config.DATA
            write_page(page, title, summary, source, data.IMAGE_CHANNELS, data.EXIF_TRANSPOSE, files)
        if files is not None:
            print(f"wrote the masks and overlays into {masks}")
    if folder is not None and summary.counts:
        record = results.check_target(out.with_name(f"{out.stem}.moved.jsonl"))
        mover = prediction_table.Mover(folder, record, model.class_names)
        progress.begin_moves()
        print(f"moved {mover.run(progress.rows()):,} photos into {folder}; {record} says from where")
    progress.finish()
    _report(summary, out)
    if not summary.counts:
        raise UserError(f"none of the {summary.total:,} photos can be read; {out} says why")
    return out


def _check_move(move: str | None) -> Path | None:
    if move is None:
        return None
    folder = results.check_target(move, "-move")
    if not move or (os.path.lexists(folder) and not folder.is_dir()):
        raise UserError(f"-move {move!r}: is not a directory, or the name of a new one")
    return folder


def _check_masks(args, model: prediction.Classifier) -> Path | None:
    if args.masks is None:
        if model.is_segmenter and args.html:
            raise UserError(f"-html {args.html}: of a segmenter, the page shows its overlays: give -masks DIR, too")
        return None
    if not model.is_segmenter:
        raise UserError(f"-masks {args.masks}: {args.run} classifies photos, not their pixels")
    if not args.masks:
        raise UserError("-masks '': is not the name of a directory")
    folders = [Path(photo).resolve() for photo in args.photos if Path(photo).is_dir()]
    written = [(Path(args.masks) / name).resolve() for name in ("", MASKS, OVERLAYS)]
    if any(path.is_relative_to(folder) for path in written for folder in folders):
        raise UserError(f"-masks {args.masks}: is in a folder of the photos, and would be taken for photos next time")
    return results.new_directory(args.masks, [args.run], "-masks")


def _predict(
    model: prediction.Classifier,
    source: Source,
    topk: int,
    progress: prediction_table.Progress,
    files: MaskFiles | None,
) -> None:
    """Predict what is not done yet."""
    options = {} if files is None else {"keep_map": files.write}
    progress.keep_for(prediction_table.digest_of_photos(source))
    if progress.done:
        print(f"resumes after {progress.done:,} of {len(source):,} photos")
        _write_lost(model, source, progress, files)
    for batch in prediction.predict_batches(model, source, topk, progress.done, **options):
        progress.add(batch)
        if len(source) <= _SHOWN:
            for row in batch:
                pairs = zip(row.classes, row.probabilities, strict=True)
                print(f"{row.file}: {row.error or ', '.join(f'{name} {share:.1%}' for name, share in pairs)}")


def _write_lost(
    model: prediction.Classifier, source: Source, progress: prediction_table.Progress, files: MaskFiles | None
) -> None:
    """Write the masks again that were removed since their photos were predicted."""
    rows = enumerate(progress.rows() if files is not None else ())
    lost = np.array([index for index, row in rows if not row.error and not files.is_written(index)], np.int64)
    for number, labels in prediction.label_maps(model, Subset(source, lost)):
        if labels is not None:
            files.write(int(lost[number]), labels)


def _report(summary: Summary, out: Path) -> None:
    counts = [f"{count:,} {name}" for name, count in summary.counts.most_common()]
    print(f"wrote {out}: {summary.total:,} photos" + (f"; {abridge(counts, _SHOWN)}" if counts else ""))
    if summary.unreadable:
        names = abridge([row.file for row in summary.unreadable[:5]], 5, total=len(summary.unreadable))
        print(f"{len(summary.unreadable):,} photos cannot be read: {names}")


if __name__ == "__main__":
    command_line.run(main)
