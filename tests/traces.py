"""Golden traces: loss, learning rate and gradient norm of 20 updates of each method, written exactly.

    python -m tests.traces DIRECTORY        # writes trace-METHOD-paddleVERSION.txt; tests/golden has those that hold

A change that should not alter numbers leaves them alone, bit-identical on a processor like the one that wrote them. The
methods are trained as users train them, through the recipes, on generated images; in a process of their own, as sums
depend on where the allocator puts an array.
"""

import runtime

runtime.prepare()

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from config import get_config
from methods import dispatch
from tests.conftest import MODES, TINY
from tests.helpers.sentences import SENTENCES, make_tokenizer
from training.log import RunLog, read_log
from training.run import Run

GOLDEN = runtime.ROOT / "tests" / "golden"
NUM_STEPS = 20
_LISTS = ["DATA.DATASET", "lists", "DATA.DROP_LAST", True, "DATA.BATCH_SIZE", 16, "TRAIN.NUM_EPOCHS", 10]
_HEAD = ["MODEL.TYPE", "CONTRASTIVE_TUNING", "CONTRAST.PROJECTOR_DIMS", [16, 16, 8], "CONTRAST.PREDICTOR_DIM", 16]
_HEAD += ["CONTRAST.QUEUE_SIZE", 100, "DATA.DROP_LAST", True, "DATA.BATCH_SIZE", 64, "TRAIN.BASE_LR", 1e-3]
_TUNING = ["CONTRAST.STAGE", "tuning", "CONTRAST.TOPK", 5, "CONTRAST.MOMENTUM", 0.9, "TRAIN.EMA_DECAY", 0.9]
_TUNING += ["TRAIN.LAYER_DECAY", 0.65, "CONTRAST.HEAD_BASE_LR", 5e-3, "CONTRAST.AUGMENTATION", "byol"]
_TEXT = ["TEXT.EMBED_DIM", 16, "TEXT.DEPTH", 1, "TEXT.NUM_HEADS", 2, "TEXT.VOCAB_SIZE", 450, "TEXT.POSITIONS", 60]
_FINETUNE = ["DATA.BATCH_SIZE", 48, "TRAIN.EMA_DECAY", 0.9, "TRAIN.ACCUM_ITER", 2, "MODEL.DROPPATH", 0.2]
# Settings of each trace. A value in braces is a directory: {data}, or the run of another trace, which goes before.
TRACES: dict[str, list] = {
    "pretrain": [*MODES["pretrain"], "DATA.BATCH_SIZE", 96],
    "finetune": [*MODES["finetune"], *_FINETUNE, "TRAIN.GRAD_CLIP", 1.0],
    "linearprobe": [*MODES["linearprobe"], "DATA.BATCH_SIZE", 96],
    "moco": ["MODEL.TYPE", "MOCO", "MOCO.HIDDEN_DIM", 16, "MOCO.OUT_DIM", 8, "DATA.DROP_LAST", True],
    "contrastive_head": [*_HEAD, "MODEL.PRETRAINED", "{pretrain}"],
    "contrastive_tuning": [*_HEAD, *_TUNING, "MODEL.PRETRAINED", "{contrastive_head}"],
    "weak_labels": [*_LISTS, "MODEL.TYPE", "WEAK_LABELS", "MODEL.NUM_CLASSES", 6, "DATA.DATA_PATH", "{data}/labels"],
    "image_text": [*_LISTS, "MODEL.TYPE", "IMAGE_TEXT", *_TEXT, "LIT.EMBED_DIM", 12, "LIT.EVAL_DATASET", "synthetic"],
    "distillation": [*MODES["pretrain"], "DATA.BATCH_SIZE", 96, "DISTILL.TEACHER", "{pretrain}"],
    "deit": [*MODES["finetune"], "DATA.BATCH_SIZE", 96, "DISTILL.TEACHER", "{finetune}", "MODEL.DISTILL_HEAD", True],
    "sweep": [*MODES["linearprobe"], "DATA.BATCH_SIZE", 96, "TRAIN.LR_SWEEP", [1.0, 10.0], "DATA.NUM_WORKERS", 1],
    "relative_position": [*MODES["finetune"], "DATA.BATCH_SIZE", 96, "MODEL.ENCODER.LAYER_SCALE", 0.1],
}
TRACES["moco"] += ["DATA.BATCH_SIZE", 64, "MODEL.PRETRAINED", "{pretrain}", "TRAIN.EMA_DECAY", 0.9]
TRACES["image_text"] += [
    "LIT.TOKENIZER",
    "{data}/tokenizer.model",
    "LIT.LANGUAGES",
    ["en", "fr"],
    "TRAIN.BASE_LR",
    0.01,
]
TRACES["image_text"] += ["DATA.DATA_PATH", "{data}/captions", "LIT.EVAL_NAMES", "digits", "MODEL.NUM_CLASSES", 0]
TRACES["image_text"] += ["MODEL.PRETRAINED", "{pretrain}", "DATA.CROP_PCT", 1.0, "TRAIN.BASE_LR", 0.01]
TRACES["distillation"] += ["DISTILL.STUDENT_HIDDEN", [1], "DISTILL.TEACHER_HIDDEN", [2], "DISTILL.EXTRA_BLOCK", True]
TRACES["relative_position"] += ["MODEL.ENCODER.RELATIVE_POSITION_BIAS", True, "MODEL.PRETRAINED", "{pretrain}"]


def make_data(root: Path) -> None:
    """Write 48 images with labels and with captions, and a tokenizer."""
    rng = np.random.default_rng(0)
    make_tokenizer(root / "tokenizer.model")
    lines = {"labels": [], "captions": []}
    for name in lines:
        (root / name).mkdir()
    for number in range(48):
        image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
        labels = rng.choice(6, rng.integers(1, 4), replace=False).tolist()
        lines["labels"].append(json.dumps({"image": f"{number}.png", "labels": labels}))
        lines["captions"].append(f"{number}.png\t{SENTENCES[number % len(SENTENCES)]}")
        for name in lines:
            image.save(root / name / f"{number}.png")
    (root / "labels" / "train.jsonl").write_text("\n".join(lines["labels"]), encoding="utf-8")
    (root / "captions" / "train.tsv").write_text("\n".join(lines["captions"]), encoding="utf-8")


def trace(name: str, root: Path) -> list[str]:
    """Train for 20 updates in root/NAME, and return a line per update: step, loss, learning rate, gradient norm."""
    folders = {folder.name: folder for folder in root.iterdir()}
    settings = [value.format(**folders) if isinstance(value, str) else value for value in TRACES[name]]
    common = ["REPORT_FREQ", 1, "TRAIN.NUM_EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 1]
    folder = root / name
    folder.mkdir()
    run = Run(get_config(None, [*TINY, *common, *settings]), folder, RunLog(folder, quiet=True))
    dispatch.train_or_evaluate(run)
    records = [record for record in read_log(folder) if record["event"] == "train"][:NUM_STEPS]
    keys = ("loss", "lr", "grad_norm")
    return [" ".join([str(record["step"]), *(str(np.float32(record[key])) for key in keys)]) for record in records]


def processor() -> str:
    """Describe what the bits depend on: the processor's instructions, and the number of threads."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    wanted = ("vendor_id", "cpu family", "model\t")
    lines = [" ".join(line.split()) for line in about.splitlines() if line.startswith(wanted)][:3]
    return f"{', '.join(lines)}, {runtime.num_cores()} cores"


def name_of(name: str) -> str:
    """Return the file name of a trace for this version of Paddle."""
    return f"trace-{name}-paddle{paddle.__version__}.txt"


def main() -> None:
    """Write the files of this version of Paddle into a directory."""
    folder = Path(sys.argv[1])
    paddle.set_device("cpu")
    paddle.set_flags({"FLAGS_use_stride_kernel": False})
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "data").mkdir()
        make_data(Path(root) / "data")
        for name in TRACES:
            header = [f"# {processor()}", "# step loss lr grad_norm"]
            lines = [*header, *trace(name, Path(root))]
            (folder / name_of(name)).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
