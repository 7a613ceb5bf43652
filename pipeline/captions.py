"""Texts as token ids, by sentencepiece with XLM-R's numbering. No Paddle here.

XLM-R's vocabulary comes from fairseq, which put its own special tokens first: `<s>` 0, `<pad>` 1, `</s>` 2, `<unk>` 3.
The pieces of the sentencepiece model follow, one further than there; its last id is `<mask>`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import UserError, printable
from storage.files import read_file, reading

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3
_SHIFT = 1  # from a piece's number in sentencepiece to its id
_SPECIAL_PIECES = ("<unk>", "<s>", "</s>")  # numbers 0, 1 and 2 in XLM-R's model
# Arguments of `sentencepiece.SentencePieceTrainer.train` for a model with XLM-R's numbers of special pieces.
TRAINER_OPTIONS = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1, "hard_vocab_limit": False}


class Tokenizer:
    """Cuts texts into pieces, and numbers them as XLM-R does.

    Args:
        path: of the sentencepiece model, for XLM-R `sentencepiece.bpe.model`.

    Raises:
        UserError: if the file is not one, or its special pieces have other numbers.
    """

    def __init__(self, path: str | Path):
        import sentencepiece

        self.path = Path(path)
        with reading(path, "a sentencepiece model"):
            content = read_file(self.path)
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
            found = [self._pieces.id_to_piece(number) for number in range(len(_SPECIAL_PIECES))]
        if tuple(found) != _SPECIAL_PIECES:
            raise UserError(
                f"{path}: its first pieces are {printable(', '.join(found), 60)}, and XLM-R's numbering needs "
                f"{', '.join(_SPECIAL_PIECES)}; docs/billion_scale.md trains one"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids: the pieces, `<pad>` and `<mask>`."""
        return self._pieces.get_piece_size() + 2

    def __call__(self, texts: Sequence[str], max_pieces: int = 100) -> list[list[int]]:
        """Return the ids of each text: 0, those of its first `max_pieces` pieces, and 2.

        `<s>` or `<pad>` in a text are text.

        Raises:
            UserError: if one text is given instead of a list.
        """
        if isinstance(texts, str):
            raise UserError(f"a list of texts is needed, and {printable(texts, 60)!r} is one text; write it as [text]")
        encoded = self._pieces.encode([_without_surrogates(text) for text in texts], out_type=int)
        return [[BEGIN, *map(_token_id, pieces[:max_pieces]), END] for pieces in encoded]


def _token_id(piece: int) -> int:
    """Return the id of a piece's number in sentencepiece, where 0 is the unknown one."""
    return piece + _SHIFT if piece else UNKNOWN


def _without_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs, which are not characters, and which UTF-8 cannot encode."""
    if not isinstance(text, str):
        raise UserError(f"{printable(text, 60)!r} is not a text")
    return text.encode("utf-8", "replace").decode("utf-8")


def pad(ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Fill up lists of ids with `PAD` to the longest of them; returns [B, T] int64."""
    padded = np.full((len(ids), max(map(len, ids), default=1)), PAD, np.int64)
    for row, own in zip(padded, ids, strict=True):
        row[: len(own)] = own
    return padded
