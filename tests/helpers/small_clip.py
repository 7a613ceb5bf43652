"""A CLIP model of a few thousand parameters, in a file."""

from pathlib import Path

import paddle

from clip import build_clip
from config import get_config
from storage import weight_files
from storage.stored_tensor import StoredTensor
from tests.conftest import TINY
from tests.helpers.sentences import make_tokenizer

OPTS = [*TINY, "MODEL.TYPE", "IMAGE_TEXT", "MODEL.NUM_CLASSES", 0, "DATA.CROP_PCT", 1.0, "LIT.EMBED_DIM", 12]
OPTS += ["TEXT.EMBED_DIM", 16, "TEXT.DEPTH", 1, "TEXT.NUM_HEADS", 2, "TEXT.VOCAB_SIZE", 450, "TEXT.POSITIONS", 60]


def write_clip(folder: Path) -> Path:
    """Write an untrained model with its YAML and its tokenizer beside it, and return its file."""
    config = get_config(None, OPTS)
    paddle.seed(0)
    clip = build_clip(config)
    arrays = {name: StoredTensor.of(value.numpy()) for name, value in clip.state_dict().items()}
    architecture = clip.architecture
    folder.mkdir(exist_ok=True)
    weight_files.write_pdparams(folder / "clip.pdparams", arrays, {architecture.KEY: architecture.to_dict()})
    (folder / "clip.yaml").write_text(config.dump())
    make_tokenizer(folder / "sentencepiece.bpe.model")
    return folder / "clip.pdparams"
