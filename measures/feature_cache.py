"""Features of whole splits, for the tools that evaluate them: flags, cache, and the figures that are printed."""

import hashlib
import json
from pathlib import Path

import numpy as np

from arguments import Parser
from errors import UserError, printable
from launch import tool_flags
from measures import image_sets
from measures.extraction import ABOUT_FILE, POOLS, extract_all
from methods import load_models
from pipeline import name_lists
from pipeline.sources import Source
from storage import atomic, manifest, results, weight_files
from storage.files import read_json
from training import device


def add_feature_flags(parser: Parser, split: str | None = None) -> None:
    """Add the flags of the tools that evaluate features; split: the default one of a tool that reads only one."""
    tool_flags.add_flags(parser, split)
    parser.add("cache", "directory that keeps the features", metavar="DIR")
    parser.add("json", "write the figures to this file, too", metavar="FILE")


def add_pool_flag(parser: Parser) -> None:
    """Add the flag that chooses the vector of an image."""
    parser.add("pool", "class token or mean of the patches, instead of what the classifier reads", choices=POOLS[:2])


def split_features(
    args, *splits: str, pool: str | None, all_layers: bool = False, neighbours: int = 0
) -> list[dict[str, np.ndarray]]:
    """Return features and labels of splits, from the cache where it has them; see `extraction.extract_all`.

    Args:
        args: of the tool.
        pool: see `extraction.extract`.
        all_layers: of every block, as if the encoder ended there, see `norm` there.
        neighbours: that are asked for among the first split's images.
    """
    device.set_device()
    model, config = load_models.load_encoder(args.run, tool_flags.read_config(args))
    found = []
    for split in splits:
        source = image_sets.open_images(config, split)
        if source.labels.min() < 0:
            raise UserError(f"{source.origin}: has images without labels")
        if split == splits[0] and len(source) < neighbours:
            raise UserError(f"-k {neighbours}: {source.origin} has {len(source):,} images")
        folder = None if args.cache is None else results.new_directory(Path(args.cache) / split, [args.run], "-cache")
        found.append(features_of(args.run, model, config, source, split, pool, all_layers, folder))
    return found


def features_of(
    run: str, model, config, source: Source, split: str, pool: str | None, all_layers: bool, folder: Path | None
) -> dict[str, np.ndarray]:
    """Return features and labels of a source, from the files in a folder where these are of it; see `split_features`.

    Args:
        run: whose weights the model has.
        split: name of the source.
    """
    layers = range(1, len(model.encoder.layers) + 1) if all_layers else None
    names = ["labels", *(["features"] if layers is None else (f"layer_{number}" for number in layers))]
    weights = weight_files.resolve(run).resolve()
    settings = hashlib.sha256(f"{config.DATA.dump()}{config.MODEL.dump()}".encode()).hexdigest()
    about = {"weights": str(weights), "written": weights.stat().st_mtime_ns, "pool": pool, "split": split}
    about |= {"origin": str(source.origin), "images": name_lists.digest(source), "settings": settings}
    cached = None if folder is None else _read_cache(folder, about, names)
    if cached is not None:
        print(f"{split}: features of {len(source):,} images are taken from {folder}")
        return cached
    print(f"{split}: computing the features of {len(source):,} images", flush=True)
    found = extract_all(model, image_sets.open_loader(config, source), layers, pool, folder, norm=all_layers)
    if folder is not None:
        atomic.write_text(folder / ABOUT_FILE, json.dumps(about | {"sums": _sha256_by_name(folder, names)}))
    return found


def mean_features(run: str, config, sources: dict[str, Source], cache: Path) -> np.ndarray:
    """Return the mean of the patches of the images of some splits, [N, D]; no loss of an MAE trains the class token.

    Args:
        cache: directory with a folder for each split.
    """
    device.set_device()
    model, config = load_models.load_encoder(run, config)
    parts = []
    for split, source in sources.items():
        folder = results.new_directory(cache / split, [run], "-cache")
        parts.append(features_of(run, model, config, source, split, "mean", False, folder)["features"])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _sha256_by_name(folder: Path, names: list[str]) -> dict[str, str]:
    return {name: manifest.digests(folder / f"{name}.npy", "sha256")["sha256"] for name in names}


def _read_cache(folder: Path, about: dict, names: list[str]) -> dict[str, np.ndarray] | None:
    """Return the arrays of a cache that is of these features, and whole; else None."""
    file = folder / ABOUT_FILE
    if not file.is_file():
        return None
    try:
        found = read_json(file)
        if {key: found.get(key) for key in about} != about:
            return None
        if found.get("sums") != _sha256_by_name(folder, names):
            raise ValueError("its sums are others than when it was written")
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (UserError, OSError, ValueError) as error:
        print(f"warning: {folder}: damaged ({printable(error)}); the features are computed again")
        return None


def check_outputs(args) -> None:
    """Check where results are to go before anything is computed."""
    if args.json is not None:
        results.new_file(args.json, ".json", flag="-json", inputs=tool_flags.list_inputs(args))


def report(args, title: str, figures: dict[str, object]) -> dict[str, object]:
    """Print figures, and write them to the file of -json."""
    print(title)
    for name, value in figures.items():
        print(f"  {name}: {value:.3f}" if isinstance(value, float) else f"  {name}: {value}")
    write_json(args, figures)
    return figures


def write_json(args, figures: object) -> None:
    """Write figures to the file of -json, if there is one."""
    if args.json is not None:
        atomic.write_text(args.json, json.dumps(figures, indent=1))
