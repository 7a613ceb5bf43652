"""Classify images by texts in any language, with a CLIP model: zero-shot accuracy, or a quick look at some photos.

    python -m tools.zeroshot CLIP -data_path DIR [-dataset folder] [-language en fr] [-out DIR]
    python -m tools.zeroshot CLIP -texts "a cat" "un chien" photo.jpg

CLIP is a run of LiT, or a ported file with its YAML. A class's vector is the unit mean of the unit vectors of all
sentences with all its names (MAWS's rule); they are cached. Sentences and names are those of configs/prompts, the names
of the data set's folders, or -templates and -classnames: .txt (a line each), .yaml, or MAWS's .npy. -out gets scores,
tables and a page per language. configs/prompts has languages de, en, es, fr, hi, zh.
"""

import runtime

runtime.prepare()

import hashlib
import json
from pathlib import Path

import numpy as np
import paddle

from arguments import Parser
from clip import CLIP, load_clip
from errors import UserError
from launch import command_line, tool_flags
from measures import classification, image_sets
from methods import zero_shot
from pages import drawing, evaluation, html
from pipeline import prompts
from pipeline.decoding import FORMAT_OF_SUFFIX
from pipeline.sources import Source
from storage import atomic, manifest, results, weight_files
from storage.cache import cache_dir
from storage.files import read_file
from training import device

_SHOWN = 12  # photos on a page
_FILES = ("scores.json", "languages.html")


def cached_vectors(clip: CLIP, weights: Path, texts: list[list[str]]) -> paddle.Tensor:
    """Return the vectors of classes, [K, E], from the cache if these weights have met these texts before.

    Args:
        weights: the file of the model.
        texts: of each class.
    """
    about = [manifest.digests(weights, "sha256")["sha256"], texts]
    about.append(manifest.digests(clip.tokenizer.path, "sha256")["sha256"] if clip.tokenizer else "")
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    file = cache_dir() / "zeroshot" / f"{name}.f32"
    shape = (len(texts), clip.text_projection.shape[1])
    if file.is_file():
        content = read_file(file)
        if len(content) == 4 * shape[0] * shape[1]:
            return paddle.to_tensor(np.frombuffer(content, np.float32).reshape(shape).copy())
    vectors = zero_shot.class_vectors(clip, texts)
    with atomic.replacing(file) as temporary:
        temporary.write_bytes(vectors.numpy().astype(np.float32).tobytes())
    return vectors


def class_texts(args, config, source: Source, language: str) -> tuple[list[list[str]], list[list[str]]]:
    """Return the texts and the names of each class, as the flags ask for."""
    templates = prompts.read_templates(args.templates) if args.templates else prompts.language_templates(language)
    if args.classnames:
        names = prompts.read_class_names(args.classnames)
    else:
        own = None if args.names else source.class_names
        names = prompts.language_class_names(language, args.names or config.DATA.DATASET, own)
    largest = source.count_classes()
    if len(names) < largest:
        raise UserError(f"{len(names)} classes have names, and {source.origin} has labels up to {largest - 1}")
    return prompts.sentences(templates, names), names


def evaluate_language(args, clip: CLIP, config, source: Source, language: str) -> dict[str, float]:
    """Print the accuracy in one language, and write tables and a page if there is a directory for them."""
    texts, names = class_texts(args, config, source, language)
    vectors = cached_vectors(clip, weight_files.resolve(args.clip), texts)

    def logits(images: paddle.Tensor) -> paddle.Tensor:
        return clip.logit_scale.exp() * paddle.matmul(clip.encode_images(images), vectors, transpose_y=True)

    notes: list[str] = []
    probabilities, labels = classification.predict(logits, image_sets.open_loader(config, source, notes))
    if labels.min() < 0:
        raise UserError(f"{source.origin}: has images without labels")
    extra = {"skipped": len(notes)} if notes else {}
    scores = classification.score(probabilities, labels) | extra
    print(f"{language}: Acc@1 {scores['acc1']:.3f}, Acc@5 {scores['acc5']:.3f} on {scores['images']:,} images")
    if args.out:
        out = results.new_directory(Path(args.out) / language, writes=evaluation.RESULTS)
        first = [own[0] for own in names]
        sections = [("Some photos", _examples(config, source, probabilities, first))] if not notes else []
        title = f"Zero-shot classification of {source.origin}, {language}"
        evaluation.write_results(out, title, probabilities, labels, first, extra=extra, more=sections)
    return scores


def _examples(config, source: Source, probabilities: np.ndarray, names: list[str]) -> str:
    """Return HTML of some photos with the class that each was taken for."""
    indices = np.linspace(0, len(source) - 1, min(_SHOWN, len(source))).astype(int)
    pixels = drawing.as_uint8(drawing.to_pixels(config, drawing.load_images(config, source, indices)))
    photos = []
    for picture, index in zip(pixels, indices, strict=True):
        best = probabilities[index].argsort()[::-1][:3]
        first, *others = (f"{names[label]} {probabilities[index, label]:.0%}" for label in best)
        is_right = best[0] == source.labels[index]
        more = others if is_right else [f"label: {names[source.labels[index]]}", *others]
        photos.append((picture, first if is_right else f"✗ {first}", ", ".join(more)))
    return html.html_row(photos) + html.html_paragraph(
        "Below each photo: the prediction; ✗ where the label is another."
    )


def quick_look(clip: CLIP, texts: list[str], photos: list[str]) -> np.ndarray:
    """Print the probability of each text for each photo, and return them, [B, number of texts]."""
    probabilities = clip.classify(photos, texts).numpy()
    width = max(map(len, texts))
    for photo, row in zip(photos, probabilities, strict=True):
        print(photo)
        for text, value in zip(texts, row, strict=True):
            print(f"  {value:7.2%}  {text.ljust(width)}  {'#' * round(40 * value)}".rstrip())
    return probabilities


def main(argv: list[str] | None = None):
    """Evaluate, or look at photos; returns the scores by language, or the probabilities."""
    parser = Parser(prog="python -m tools.zeroshot", description=__doc__)
    parser.add_argument("clip", metavar="CLIP", help="run of LiT, or a ported CLIP file with its YAML")
    parser.add("texts", "texts to choose from, and photos behind them", nargs="+", metavar="TEXT")
    parser.add("photos", "photos, where -texts does not end in them", nargs="+", default=[], metavar="FILE")
    parser.add("language", "languages to ask in (default: en)", nargs="+", default=["en"], metavar="LANGUAGE")
    parser.add("templates", "sentences with {} in the place of a name, instead of a language's", metavar="FILE")
    parser.add("classnames", "names of the classes, instead of a language's", metavar="FILE")
    parser.add("names", "data set whose names in configs/prompts are meant (default: -dataset)", metavar="NAME")
    parser.add("tokenizer", "sentencepiece model (default: the run's, or the one beside the weights)", metavar="FILE")
    tool_flags.add_data_flags(parser)
    parser.add("out", "directory for scores, tables and pages", metavar="DIR")
    args = parser.parse_args(argv)
    args.run = args.clip
    photos = [*args.photos, *(text for text in args.texts or [] if _is_photo(text))]
    absent = [t for t in args.texts or [] if Path(t).suffix.lower() in FORMAT_OF_SUFFIX and not Path(t).is_file()]
    if absent:
        raise UserError(f"{absent[0]}: no such photo")
    if args.image_size is not None:
        raise UserError(f"-image_size {args.image_size}: a CLIP model takes images of its own size only")
    if args.texts and not photos:
        raise UserError("-texts needs photos behind the texts, or in -photos")
    out = results.new_directory(args.out, [args.clip], writes=_FILES) if args.out else None
    device.set_device()
    clip = load_clip(args.clip, args.tokenizer)
    if args.texts:
        return quick_look(clip, [text for text in args.texts if not _is_photo(text)], photos)
    config = tool_flags.read_config(args, *([] if args.dataset else ["DATA.DATASET", "folder"]))
    source = image_sets.open_images(config, args.split)
    scores = {language: evaluate_language(args, clip, config, source, language) for language in args.language}
    if out is not None:
        results.claim(out, _FILES)
        atomic.write_text(out / "scores.json", json.dumps(scores, indent=1))
        _write_overview(out, source, scores)
    return scores


def _write_overview(out: Path, source: Source, scores: dict[str, dict[str, float]]) -> None:
    """Write the page that has all languages side by side."""
    names = list(dict.fromkeys(name for own in scores.values() for name in own))
    rows = [
        [html.Link(language, f"{language}/report.html"), *(own.get(name, "") for name in names)]
        for language, own in scores.items()
    ]
    table = html.html_table(["language", *names], rows)
    html.write_page(out / "languages.html", f"Zero-shot classification of {source.origin}", [("Languages", table)])


def _is_photo(text: str) -> bool:
    return Path(text).suffix.lower() in FORMAT_OF_SUFFIX and Path(text).is_file()


if __name__ == "__main__":
    command_line.run(main)
