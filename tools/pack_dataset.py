"""Pack a data set into few large files, resized, for fast reading: WebDataset shards.

    python -m tools.pack_dataset SRC DST [-dataset imagenet2012] [-size 256] [-quality 95]
    python -m tools.pack_dataset SRC DST -dataset folder -arrays     # for DATA.PIXELS array
    python -m tools.pack_dataset -verify DST

SRC is a directory as `-data_path` takes it, DST a new one that takes its place in every recipe. Training photos whose
shorter side has more than -size pixels are resized to that (bicubic), and stored as JPEG, or as PNG if they have an
alpha channel; all other files are kept as they are, with -size 0 every one. Those of the val split are kept, too, so
that evaluation gives the same numbers. Labels, captions and class names come along. The same command continues where it
was interrupted. With -arrays, TIFF, .npy, .npz, DICOM and PNG files are kept as they are.
An image that cannot be read is an error, or left out and listed with -skip_bad.
"""

import runtime

runtime.prepare()

import functools
import hashlib
import io
import json
import sys
from pathlib import Path

from PIL import ExifTags, Image

import datasets
from arguments import Parser, user_path
from config import DATASETS
from errors import UserError, abridge
from launch import command_line
from launch.tool_flags import share
from pipeline import array_files, decoding
from pipeline.decoding import as_mode, decode, image_suffix
from pipeline.folders import class_folders
from pipeline.image_lists import list_names
from pipeline.shard_writer import write_shards
from pipeline.sources import Source
from pipeline.splits import find_split
from pipeline.web_shards import PACK_FILE, PACK_VERSION, is_packed, read_pack
from storage import atomic, manifest, results

_PLAN = "plan.json"


def encode(source: Source, index: int, size: int, quality: int) -> tuple[str, bytes]:
    """Return an image of a source as a suffix and the content of a file.

    A file is kept as it is, unless its shorter side has more than `size` pixels. Then it is resized to that, and stored
    as JPEG, or as PNG if it has an alpha channel. Its EXIF orientation stays a note.

    Args:
        size: pixels; 0: all files are kept.
        quality: of a JPEG.
    """
    data = source.read(index)
    image = decode(data)
    has_alpha = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    is_grey = image.mode in ("1", "L", "I") or image.mode.startswith("I;16")
    scale, orientation = size / min(image.size), _orientation(image)
    pixels = as_mode(image, 4 if has_alpha else 1 if is_grey else 3, upright=False)  # raises if none can be made of it
    if size == 0 or scale >= 1:
        return image_suffix(image), data
    pixels = pixels.resize([max(1, round(side * scale)) for side in pixels.size], Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    note, buffer = exif.tobytes() if orientation != 1 else b"", io.BytesIO()
    pixels.save(buffer, "PNG" if has_alpha else "JPEG", quality=quality, exif=note)
    return ".png" if has_alpha else ".jpg", buffer.getvalue()


def encode_array(source: Source, index: int) -> tuple[str, bytes]:
    """Return the file of an array as it is, with its suffix; raise ValueError if it is none."""
    data = source.read(index)
    array_files.decode(data, channels=array_files.ANY)
    return array_files.SUFFIXES[array_files.kind_of(data)], data


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, from 1 to 8; 1 where it is none of them."""
    try:
        found = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block must not cost us an intact image
        return 1
    return found if 1 <= found <= 8 else 1


def pack(src: Path, dst: Path, args) -> None:
    """Pack the train split and, where there is one, the val split, and print what was written.

    Args:
        args: `dataset`, `size`, `quality`, `per_shard`, `skip_bad` and `list_outside` of the command line.

    Raises:
        UserError: if the source is not in order, or DST holds something else.
    """
    decoding.allow_arrays(args.arrays)
    sources = {split: _open(args, src, split) for split in ("train", "val") if _has_split(args, src, split)}
    plan = {"version": PACK_VERSION, "size": args.size, "quality": args.quality, "images_per_shard": args.per_shard}
    plan |= {"arrays": True} if args.arrays else {}
    _begin(dst, plan | {"skip_bad": args.skip_bad, "source": {s: _checksum(source) for s, source in sources.items()}})
    left_out = {}
    for split, source in sources.items():
        size = args.size if split == "train" else 0
        encode_one = functools.partial(encode, source, size=size, quality=args.quality)
        encode_one = functools.partial(encode_array, source) if args.arrays else encode_one
        left_out[split] = bad = write_shards(source, dst / split, encode_one, args.per_shard, args.skip_bad)
        if len(bad) == len(source):
            raise UserError(f"{source.origin}: none of its images can be read")
        manifest.write(dst / split)
        shards = list((dst / split).glob("*.tar"))
        mib = sum(shard.stat().st_size for shard in shards) / 2**20
        print(f"{split}: {len(source) - len(bad):,} images, {mib:,.0f} MiB in {len(shards)} files")
        if bad:
            print(f"  left out {len(bad)}: {abridge(bad, 5, '; ')}")
    info = plan | {"class_names": sources["train"].class_names, "left_out": left_out}
    atomic.write_text(dst / PACK_FILE, json.dumps(info, indent=1))  # from now on it is a packed data set
    (dst / _PLAN).unlink()
    print(f"use it with -data_path {dst}, and -dataset webdataset or any other")


def _has_split(args, src: Path, split: str) -> bool:
    """Return True if a split is to be packed: every train split, and every val split that is there."""
    if args.val_fraction is not None:
        return True
    own = find_split(src, split)
    names = list_names(own) if args.dataset == "lists" else [own, f"{own}_list.txt"]
    needs_look = args.dataset in ("folder", "imagenet2012", "lists", "webdataset") or is_packed(src)
    return split == "train" or not needs_look or any((src / name).exists() for name in names)


def _open(args, src: Path, split: str) -> Source:
    """Open and check a split with its labels; a folder to pretrain on may have none."""
    options = {"num_classes": 1, "list_outside": args.list_outside, "val_fraction": args.val_fraction}
    train = src / find_split(src, "train")
    needs = "none" if args.dataset in ("lists", "webdataset") or is_packed(src) else "label"
    has_list = (src / "train_list.txt").is_file()
    is_folder = needs == "label" and args.dataset in ("folder", "imagenet2012") and not has_list and split == "train"
    is_folder = is_folder and args.val_fraction is None
    if is_folder:
        everything = datasets.open_source(args.dataset, str(src), split, needs="none", **options)
    if is_folder and not (train.is_dir() and class_folders(train)):
        source = everything
        if class_folders(train if train.is_dir() else src):
            print(f"warning: {src}: packed without labels, to pretrain; -val_fraction 0.1 keeps those of its folders")
    else:
        source = datasets.open_source(args.dataset, str(src), split, needs=needs, **options)
        if is_folder and len(source) < len(everything):
            raise UserError(f"{train}: {len(everything) - len(source)} images are in no class folder; move them")
    if not source.is_encoded:
        raise UserError(f"-dataset {args.dataset}, {src}: image files are packed, and this is something else")
    for note in source.check(num_classes=None, channels=3):
        print(f"warning: {note}")
    return source


def _checksum(source: Source) -> str:
    """Return a sum of a source's list, so that an interrupted packing continues with the same list only."""
    digest = hashlib.sha256(source.label_lists().flat.tobytes())
    for index in range(len(source)):
        digest.update(source.describe(index).encode("utf-8", "surrogateescape") + b"\0")
        if source.captions is not None:
            digest.update(source.captions[index].encode() + b"\0")
    return digest.hexdigest()


def _begin(dst: Path, plan: dict) -> None:
    if is_packed(dst):
        raise UserError(f"{dst}: is a packed data set already; choose another directory, or delete it")
    results.check_target(dst, "DST")
    try:
        dst.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{dst}: cannot be made a directory ({error.strerror})") from error
    file, text = dst / _PLAN, json.dumps(plan, indent=1)
    if not file.exists() and any(dst.iterdir()):
        raise UserError(f"{dst}: is not empty; choose another directory")
    if file.exists() and file.read_bytes() != text.encode():
        raise UserError(
            f"{dst}: was begun with other settings or another source; choose another directory, or delete it"
        )
    file.write_text(text, encoding="utf-8")


def verify(dst: Path) -> list[str]:
    """Compare every shard with its sum; returns the problems."""
    read_pack(dst)
    folders = [dst / split for split in ("train", "val") if (dst / split).is_dir()]
    lacking = [f"{folder / manifest.NAME} is missing" for folder in folders if not (folder / manifest.NAME).is_file()]
    return lacking + [damage for damage in map(manifest.find_damage, folders) if damage]


def main(argv: list[str] | None = None) -> int:
    """Pack or verify, and return the exit code."""
    parser = Parser(prog="python -m tools.pack_dataset", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="SRC DST", help="where it is, and where it goes")
    parser.add("dataset", "as in training (default: imagenet2012)", default="imagenet2012")
    parser.add("size", "pixels of the shorter side (default: 256); 0: files as they are", type=int)
    parser.add("quality", "of the JPEGs (default: 95)", type=int, default=95)
    parser.add("per_shard", "images in a file (default: 10000)", type=int, default=10_000)
    parser.add("arrays", "files of arrays (DATA.PIXELS), kept as they are", action="store_true")
    parser.add("skip_bad", "leave out what cannot be read", action="store_true")
    parser.add("list_outside", "list files may name files outside SRC", action="store_true")
    parser.add("val_fraction", "DATA.VAL_FRACTION, for classes without splits", type=share, metavar="SHARE")
    parser.add("verify", "compare a packed data set with its sums", action="store_true")
    args = parser.parse_args(argv)
    if args.verify:
        problems = [problem for path in args.paths for problem in verify(Path(path))]
        print("\n".join(problems) or "all is well")
        return 1 if problems else 0
    if args.dataset not in DATASETS:
        raise UserError(f"-dataset {args.dataset}: must be one of {', '.join(DATASETS)}")
    if len(args.paths) != 2:
        raise UserError("SRC and DST are needed: where the data set is, and where it goes")
    if args.arrays and args.size:
        raise UserError(f"-size {args.size}: arrays are kept as they are; leave it out")
    args.size = 0 if args.arrays else 256 if args.size is None else args.size
    if args.size < 0 or not 1 <= args.quality <= 100 or args.per_shard < 1:
        raise UserError("-size must not be negative, -quality from 1 to 100, -per_shard at least 1")
    src, dst = (user_path(path, "SRC or DST") for path in args.paths)
    if not src.is_dir():
        raise UserError(f"{src}: no such directory")
    if any((src / split).resolve() in (dst.resolve(), *dst.resolve().parents) for split in ("train", "val")):
        raise UserError(f"{dst}: is in a split of the data set itself; choose another directory")
    pack(src, dst, args)
    return 0


if __name__ == "__main__":
    command_line.run(lambda: sys.exit(main()))
