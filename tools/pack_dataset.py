"""Pack a data set into few large files, resized, for fast reading.

    python -m tools.pack_dataset SRC DST [-dataset imagenet2012] [-size 256] [-quality 95]
    python -m tools.pack_dataset -verify DST

SRC is a directory as `-data_path` takes it, DST a new one that takes its place in every recipe. Training photos whose
shorter side has more than -size pixels are resized to that (bicubic), and stored as JPEG, or as PNG if they have an
alpha channel; all other files are kept as they are, with -size 0 every one. Those of the val split are kept, too, so
that evaluation gives the same numbers. The same command goes on where it was interrupted. An image that cannot be read
is an error, or left out and listed with -skip_bad.
Lists with captions or several labels (-dataset lists) become WebDataset shards, for -dataset webdataset.
"""

import runtime

runtime.prepare()

import concurrent.futures
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

import datasets
from arguments import Parser, user_path
from config import DATASETS
from errors import UserError, abridge
from pipeline import packed_images
from pipeline.decoding import as_mode, decode, suffix_of
from pipeline.folders import class_folders
from pipeline.image_lists import ListedImages, find_list, list_names
from pipeline.sources import Source, describe_unreadable
from pipeline.web_shards import WebShards
from program import terminal
from storage import manifest, run_files
from tools import pack_shards
from training import cli

_FIELDS = ("offset", "size", "label")


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
        return suffix_of(image), data
    pixels = pixels.resize([max(1, round(side * scale)) for side in pixels.size], Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    note, buffer = exif.tobytes() if orientation != 1 else b"", io.BytesIO()
    pixels.save(buffer, "PNG" if has_alpha else "JPEG", quality=quality, exif=note)
    return ".png" if has_alpha else ".jpg", buffer.getvalue()


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, from 1 to 8; 1 where it is none of them."""
    try:
        found = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block must not cost us an intact image
        return 1
    return found if 1 <= found <= 8 else 1


def pack_split(
    source: Source, root: Path, split: str, *, size: int, quality: int, per_shard: int, skip_bad: bool
) -> dict:
    """Write the shards and the index of a split; shards of an interrupted call are kept.

    Returns:
        What packed.json says of it, and under "bad" the images that were left out.
    """
    shards, bad, parts = [], [], []
    starts = range(0, len(source), per_shard)
    with concurrent.futures.ThreadPoolExecutor(runtime.num_cores()) as pool:
        for number, start in enumerate(tqdm(starts, f"{split} shards", disable=None, file=terminal(sys.stderr))):
            shard = root / f"{split}-{number:05d}.tar"
            done = shard.with_suffix(".npz")  # written last
            if not done.is_file():
                indices = range(start, min(start + per_shard, len(source)))
                _write_shard(pool, source, indices, shard, size, quality, skip_bad)
            with np.load(done, allow_pickle=False) as part:
                parts.append({"shard": np.full(len(part["label"]), number), **{key: part[key] for key in _FIELDS}})
                bad += part["bad"].tolist()
                about = {"file": shard.name, "size": shard.stat().st_size, "sha256": str(part["sha256"])}
                shards.append({**about, "images": len(part["label"])})
    index = {key: np.concatenate([part[key] for part in parts]) for key in ("shard", *_FIELDS)}
    np.savez(packed_images.index_file(root, split), **index)
    return {"shards": shards, "class_names": source.class_names, "bad": bad}


def _write_shard(pool, source, indices: range, shard: Path, size: int, quality: int, skip_bad: bool) -> None:
    def encode_one(index: int) -> bytes | str:
        try:
            return encode(source, index, size, quality)[1]
        except Exception as error:  # damaged files raise nearly anything
            return describe_unreadable(source, index, error)

    found = {key: [] for key in _FIELDS}
    bad, temporary = [], shard.with_suffix(".tmp")
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, data in zip(indices, pool.map(encode_one, indices), strict=True):
            if isinstance(data, str):
                if not skip_bad:
                    raise UserError(f"{data}; -skip_bad leaves it out")
                bad.append(data)
                continue
            member = tarfile.TarInfo(f"{index:09d}-{_safe_name(source.describe(index))}")
            member.size = len(data)
            found["offset"].append(tar.offset + packed_images.TAR_BLOCK_BYTES)
            tar.addfile(member, io.BytesIO(data))
            found["size"].append(len(data))
            found["label"].append(int(source.labels[index]))
    os.replace(temporary, shard)
    sums = manifest.digests(shard, "sha256")
    arrays = {key: np.array(values, np.int64) for key, values in found.items()}
    done = shard.with_suffix(".npz")
    np.savez(done.with_suffix(".tmp.npz"), **arrays, bad=np.array(bad, str), **sums)
    os.replace(done.with_suffix(".tmp.npz"), done)


def _safe_name(name: str) -> str:
    """Return the end of a path in a form that fits into a tar header with the number before it."""
    name = "".join(char if char.isalnum() or char in "._-" else "_" for char in name[-60:])
    return name.encode("ascii", "replace").decode("ascii").replace("?", "_")


def pack(
    src: Path,
    dst: Path,
    *,
    dataset: str,
    size: int,
    quality: int,
    per_shard: int,
    skip_bad: bool = False,
    list_outside: bool = False,
) -> dict:
    """Pack the train split and, where there is one, the val split; returns the content of packed.json.

    Raises:
        UserError: if the source is not in order, or DST holds something else.
    """
    sources = {}
    for split in ("train", "val"):
        if not _has_split(dataset, src, split):
            continue
        source = _open(dataset, src, split, list_outside)
        if not source.is_encoded or isinstance(source, WebShards):
            raise UserError(f"-dataset {dataset}, {src}: image files are packed, and this is something else")
        _check(source)
        sources[split] = source
    plan = {"version": packed_images.VERSION, "size": size, "quality": quality, "images_per_shard": per_shard}
    plan |= {"source": {split: _sum_of(source) for split, source in sources.items()}}
    _begin(dst, plan)
    splits = {}
    for split, source in sources.items():
        options = {"size": size if split == "train" else 0, "quality": quality, "per_shard": per_shard}
        splits[split] = pack_split(source, dst, split, **options, skip_bad=skip_bad)
    info = {**plan, "splits": splits}
    temporary = dst / f"{packed_images.INFO_FILE}.tmp"
    temporary.write_text(json.dumps(info, indent=1), encoding="utf-8")
    os.replace(temporary, dst / packed_images.INFO_FILE)  # from now on it is a packed data set
    for about in splits.values():
        for shard in about["shards"]:
            (dst / shard["file"]).with_suffix(".npz").unlink()
    (dst / "plan.json").unlink()
    return info


def _has_split(dataset: str, src: Path, split: str) -> bool:
    """Return True if a split is to be packed: every train split, and every val split that there is."""
    if packed_images.is_packed(src):
        return split in packed_images.read_info(src)["splits"]
    is_plain = dataset in ("folder", "imagenet2012")
    return split == "train" or not is_plain or (src / split).is_dir() or (src / f"{split}_list.txt").is_file()


def _check(source: Source) -> None:
    """Check what is packed, and print what is left out; raise UserError as `datasets.check_source`."""
    for note in datasets.check_source(source, num_classes=None, channels=3):
        print(f"warning: {note}")


def _open(dataset: str, src: Path, split: str, list_outside: bool) -> Source:
    """Open a split with its labels; a folder to pretrain on may have none."""
    options = {"num_classes": 1, "list_outside": list_outside}
    if split == "val" or (src / "train_list.txt").is_file():
        return datasets.open_source(dataset, str(src), split, **options)
    everything = datasets.open_source(dataset, str(src), split, needs="none", **options)
    if not (src / split).is_dir() or not class_folders(src / split):
        return everything
    labelled = datasets.open_source(dataset, str(src), split, **options)
    if 0 < len(labelled) < len(everything):
        raise UserError(f"{src / split}: {len(everything) - len(labelled)} images are in no class folder; move them")
    return labelled if len(labelled) else everything


def _sum_of(source: Source) -> str:
    """Return a sum of a source's list, so that an interrupted packing continues with the same list only."""
    digest = hashlib.sha256(source.labels.tobytes())
    for index in range(len(source)):
        digest.update(source.describe(index).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _begin(dst: Path, plan: dict) -> None:
    if packed_images.is_packed(dst):
        raise UserError(f"{dst}: is a packed data set already; choose another directory, or delete it")
    run_files.check_target(dst, "DST")
    try:
        dst.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{dst}: cannot be made a directory ({error.strerror})") from error
    file, text = dst / "plan.json", json.dumps(plan, indent=1)
    if not file.exists() and any(dst.iterdir()):
        raise UserError(f"{dst}: is not empty; choose another directory")
    if file.exists() and file.read_bytes() != text.encode():
        raise UserError(
            f"{dst}: was begun with other settings or another source; choose another directory, or delete it"
        )
    file.write_text(text, encoding="utf-8")


def verify(dst: Path) -> list[str]:
    """Compare every shard with its sum; returns the problems."""
    problems = []
    try:
        for split, about in packed_images.read_info(dst)["splits"].items():
            packed_images.PackedImages(dst, split)
            for shard in tqdm(about["shards"], f"{split} shards", disable=None, file=terminal(sys.stderr)):
                if manifest.digests(dst / shard["file"], "sha256")["sha256"] != shard["sha256"]:
                    problems.append(f"{dst / shard['file']}: its SHA-256 sum is another than when it was written")
    except UserError as error:
        problems.append(str(error))
    return problems


def main(argv: list[str] | None = None) -> int:
    """Pack or verify, and return the exit code."""
    parser = Parser(prog="python -m tools.pack_dataset", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="SRC DST", help="where it is, and where it goes")
    parser.add("dataset", "as in training (default: imagenet2012)", default="imagenet2012")
    parser.add("size", "pixels of the shorter side (default: 256); 0: files as they are", type=int, default=256)
    parser.add("quality", "of the JPEGs (default: 95)", type=int, default=95)
    parser.add("per_shard", "images in a file (default: 10000)", type=int, default=10_000)
    parser.add("skip_bad", "leave out what cannot be read", action="store_true")
    parser.add("list_outside", "list files may name files outside SRC", action="store_true")
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
    if args.size < 0 or not 1 <= args.quality <= 100 or args.per_shard < 1:
        raise UserError("-size must not be negative, -quality from 1 to 100, -per_shard at least 1")
    src, dst = (user_path(path, "SRC or DST") for path in args.paths)
    if not src.is_dir():
        raise UserError(f"{src}: no such directory")
    if any((src / split).resolve() in (dst.resolve(), *dst.resolve().parents) for split in ("train", "val")):
        raise UserError(f"{dst}: is in a split of the data set itself; choose another directory")
    if args.dataset == "lists":
        return _pack_lists(args, src, dst)
    options = {"dataset": args.dataset, "size": args.size, "quality": args.quality, "per_shard": args.per_shard}
    info = pack(src, dst, **options, skip_bad=args.skip_bad, list_outside=args.list_outside)
    for split, about in info["splits"].items():
        num_images = sum(shard["images"] for shard in about["shards"])
        num_bytes = sum(shard["size"] for shard in about["shards"])
        print(f"{split}: {num_images:,} images, {num_bytes / 2**20:,.0f} MiB in {len(about['shards'])} files")
        if about["bad"]:
            print(f"  left out {len(about['bad'])}: {abridge(about['bad'], 5, '; ')}")
    print(f"use it with -data_path {dst}")
    return 0


def _pack_lists(args, src: Path, dst: Path) -> int:
    """Pack the lists that there are, and return the exit code."""
    find_list(src, "train")  # says what is missing before anything is made
    sums = {file.name: manifest.digests(file, "sha256")["sha256"] for file in sorted(src.iterdir()) if file.is_file()}
    plan = {"lists": sums, "size": args.size, "quality": args.quality, "images_per_shard": args.per_shard}
    _begin(dst, plan | {"skip_bad": args.skip_bad})
    for split in ("train", "val"):
        if split == "val" and not any((src / name).is_file() for name in list_names(split)):
            continue
        source = ListedImages(find_list(src, split), "none", args.list_outside)
        _check(source)
        size = args.size if split == "train" else 0
        done = pack_shards.pack_lists(
            source,
            dst / split,
            lambda index, source=source, size=size: encode(source, index, size, args.quality),
            args.per_shard,
            args.skip_bad,
        )
        if not done["images"]:
            raise UserError(f"{source.origin}: none of its images can be read")
        print(f"{split}: {done['images']:,} images in {done['shards']} files")
        if done["bad"]:
            print(f"  left out {len(done['bad'])}: {abridge(done['bad'], 5, '; ')}")
    (dst / "plan.json").unlink()
    print(f"use it with -dataset webdataset -data_path {dst}")
    return 0


if __name__ == "__main__":
    cli.run(lambda: sys.exit(main()))
