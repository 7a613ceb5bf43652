"""Sentences of our own in many scripts, on which the tests train a small tokenizer."""

from pathlib import Path

import sentencepiece

from pipeline.captions import TRAINER_OPTIONS

# ruff: noqa: RUF001

SENTENCES = [
    "A cat sits on the warm stone and watches the birds.",
    "The old ship leaves the harbour before sunrise.",
    "My neighbour's truck is bigger than my house!",
    "Un chien court derrière le camion rouge.",
    "La grenouille dort près de l'étang, sous la lune.",
    "Où est passé l'avion de papier ?",
    "Das Pferd frisst Äpfel, und der Hirsch schaut zu.",
    "Über den Wolken fliegt ein kleines Flugzeug.",
    "El pájaro canta en la mañana; ¿lo oyes?",
    "Mañana viajamos en barco a la isla.",
    "बिल्ली धूप में सो रही है।",
    "एक बड़ा ट्रक सड़क पर खड़ा है।",
    "घोड़ा और हिरण मैदान में दौड़ते हैं।",
    "一只猫在窗边睡觉。",
    "卡车停在马路旁边,船停在港口。",
    "小鸟飞过湖面,青蛙跳进水里。",
    "Кошка спит на тёплом подоконнике.",
    "Большой корабль уходит в море.",
    "القطة تنام تحت الشجرة.",
    "الحصان أسرع من الشاحنة.",
    "החתול ישן על הספה.",
    "Η γάτα κοιμάται στον ήλιο.",
    "猫が窓のそばで眠っています。",
    "トラックは家より大きいです。",
    "고양이가 햇볕 아래에서 잔다.",
    "แมวนอนหลับใต้ต้นไม้",
    "Con mèo đang ngủ trên ghế.",
    "Kedi güneşte uyuyor, kuş şarkı söylüyor.",
    "a photo of a cat, a photo of a dog, a photo of a horse",
    "une photo : un chat, une photo : un chien",
    "1 234,56 € and 99 % of 3 × 4 = 12",
    "🐱 🐶 🚚 emoji are text, too 🙂",
]


def make_tokenizer(path: Path, vocab_size: int = 420) -> Path:
    """Write a tokenizer that knows these sentences."""
    path = Path(path)
    texts = path.with_suffix(".txt")
    texts.write_text("\n".join(SENTENCES * 4), encoding="utf-8")
    files = {"input": str(texts), "model_prefix": str(path.with_suffix(""))}
    sentencepiece.SentencePieceTrainer.train(**files, vocab_size=vocab_size, minloglevel=2, **TRAINER_OPTIONS)
    texts.unlink()
    path.with_suffix(".vocab").unlink()
    return path
