"""Train a small sentencepiece model with XLM-R's numbering, on captions of one's own.

    python -m tools.train_tokenizer TEXT_FILE [TEXT_FILE ...] -out tokenizer.model [-vocab_size 4000]

A text file has a text per line; of a `.tsv` file (`path<TAB>caption`) or a `.jsonl` file the captions are read. For a
text tower from scratch; XLM-R's own model is `python -m zoo fetch xlmr_tokenizer`.
"""

import runtime

runtime.end_quietly()

import argparse
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import program
from arguments import Parser
from errors import UserError, one_line, printable
from pipeline.shard_scan import parse_json
from storage import atomic, run_files
from storage.text_files import read_lines

_MOST_BYTES = 4 << 30


def train(texts: Iterable[str], path: str | Path, vocab_size: int) -> None:
    """Train a unigram model whose special pieces are numbered as XLM-R's, and write it.

    Args:
        texts: one by one.
        vocab_size: pieces, special ones included; fewer where the texts do not have so many.

    Raises:
        UserError: if the texts are too few.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=0.9995,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        small = "smaller than required_chars" in str(error)
        why = "they have more characters than -vocab_size has pieces; raise it" if small else one_line(error)
        raise UserError(f"no tokenizer can be trained on these texts: {why}") from error
    with atomic.replacing(Path(path)) as temporary:
        temporary.write_bytes(model.getvalue())


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file, or the captions of a `.tsv` or `.jsonl` file."""
    lines = read_lines(path, _MOST_BYTES)
    if path.suffix == ".jsonl":
        return [caption for caption in map(_caption_of, lines) if caption]
    texts = [line.partition("\t")[2] if path.suffix == ".tsv" else line for line in lines]
    return [text.strip() for text in texts if text.strip()]


def _caption_of(line: str) -> str:
    """Return the caption of a line of JSON; empty where there is none."""
    try:
        return parse_json(line)[0]
    except ValueError as error:
        raise UserError(f"{printable(line, 60)!r} is no line of a .jsonl list ({one_line(error)})") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Train a tokenizer."""
    parser = Parser(prog="python -m tools.train_tokenizer", description=__doc__.partition("\n")[0])
    parser.add_argument("texts", metavar="TEXT_FILE", nargs="+", type=Path)
    parser.add("out", "the model, a .model file", metavar="FILE", required=True)
    parser.add("vocab_size", "number of pieces (default: 4000)", type=_vocab_size, default=4000, metavar="N")
    args = parser.parse_args(argv)
    out = run_files.check_target(args.out, "-out", args.texts)
    if out.suffix != ".model" or not out.parent.is_dir() or out.is_dir():
        raise UserError(f"-out {out}: must be a .model file in a directory that exists")
    if out.exists():
        raise UserError(f"-out {out}: exists, and runs may need it; choose another name, or delete it")
    texts = [text for path in args.texts for text in read_texts(path)]
    if not texts:
        raise UserError("no tokenizer can be trained on these texts: there are none")
    train(texts, out, args.vocab_size)
    print(f"wrote {out}, trained on {len(texts):,} texts")


def _vocab_size(text: str) -> int:
    if not text.isdecimal() or not 10 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of pieces from 10 to 1,000,000")
    return int(text)


if __name__ == "__main__":
    program.run(main)
