"""A method of another kind is one file: this one, which adds it through the public table only.

The toy contrasts two views of an image: an encoder and a projector against a momentum copy of both, with a queue of
older features (floats) and of the images that they are of (integers). As a script it trains as one of several ranks:

    python -m paddle.distributed.launch --nproc_per_node 2 tests/methods/test_toy_method.py KEYS.yaml FLAGS...
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import runtime

runtime.prepare()

import copy
import subprocess

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

import config as config_module
import main_multi_gpu_finetune
import main_multi_gpu_linearprobe
import main_multi_gpu_pretrain
from config import get_config, replaced
from launch.run_directory import find
from methods import dispatch
from methods.method import Method
from optim import param_groups
from pipeline.transforms import crop_and_flip, train_transform
from port_weights import port
from runtime import ROOT
from storage import weight_files
from storage.run_files import BEST, EMA_FILE, EXTRA_FILE, MODEL_FILE, OPTIMIZER_FILE
from tests.conftest import TINY, assert_close
from tests.helpers.joint_batch import comparable
from tests.helpers.saved_runs import stop_at
from tools import analyse, features, knn, report, visualise
from training.log import read_log
from training.optimizers import configured_optimizer, weight_average
from training.task import Task
from transformer import build_transformer

KEYS = """
NETWORK: encoder
KEYS:
  TOY.DIM: {default: 8, rule: from 1 to 4096, about: width of the projection}
  TOY.QUEUE_SIZE: {default: 96, rule: at least 1, about: images whose features are kept}
  TOY.MOMENTUM: {default: 0.9, rule: at least 0 and below 1, about: of the copy}
  TOY.TEMPERATURE: {default: 0.2, rule: above 0, about: of the softmax}
"""


# ---- the method --------------------------------------------------------------------------------


class ToyContrast(nn.Layer):
    """Encoder, projector, a momentum copy of both, and the queue."""

    def __init__(self, config):
        super().__init__()
        toy, dim = config.TOY, config.MODEL.ENCODER.EMBED_DIM
        self.temperature = toy.TEMPERATURE
        self.encoder = build_transformer(replaced(config, "MODEL.NUM_CLASSES", 0))
        self.projector = nn.Linear(dim, toy.DIM)
        self.target_encoder, self.target_projector = copy.deepcopy(self.encoder), copy.deepcopy(self.projector)
        for parameter in (*self.target_encoder.parameters(), *self.target_projector.parameters()):
            parameter.stop_gradient = True
        queue = np.random.default_rng(0).standard_normal((toy.QUEUE_SIZE, toy.DIM)).astype(np.float32)
        self.register_buffer("queue", F.normalize(paddle.to_tensor(queue)))
        self.register_buffer("queue_ids", paddle.full([toy.QUEUE_SIZE], -1, "int64"))
        self.register_buffer("pointer", paddle.zeros([1], "int64"))

    def forward(self, view0, view1, indices):
        query = F.normalize(self.projector(self.encoder(view0)))  # [B, D]
        with paddle.no_grad():
            key = F.normalize(self.target_projector(self.target_encoder(view1)))
        positive = (query * key).sum(axis=-1, keepdim=True)  # [B, 1]
        negative = paddle.matmul(query, self.queue, transpose_y=True)  # [B, Q]
        is_own = (indices.unsqueeze(1) == self.queue_ids.unsqueeze(0)).astype("float32")
        negative = negative - 1e4 * is_own
        logits = paddle.concat([positive, negative], axis=1) / self.temperature
        loss = F.cross_entropy(logits, paddle.zeros([len(query)], "int64"))
        self.enqueue(key, indices)
        return loss, {"alignment": positive.mean(), "spread": (negative * (1 - is_own)).mean()}

    @paddle.no_grad()
    def enqueue(self, key, indices) -> None:
        if runtime.world_size() > 1:
            keys, ids = [], []
            paddle.distributed.all_gather(keys, key.contiguous())
            paddle.distributed.all_gather(ids, indices)
            key, indices = paddle.concat(keys), paddle.concat(ids)
        places = (paddle.arange(len(key), dtype="int64") + self.pointer) % len(self.queue)
        self.queue.set_value(paddle.scatter(self.queue, places, key))
        self.queue_ids.set_value(paddle.scatter(self.queue_ids, places, indices))
        self.pointer.set_value((self.pointer + len(key)) % len(self.queue))

    @paddle.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the copies towards what they are copies of."""
        for own, target in ((self.encoder, self.target_encoder), (self.projector, self.target_projector)):
            for value, average in zip(own.parameters(), target.parameters(), strict=True):
                average.set_value(average * momentum + value * (1.0 - momentum))


def build(run) -> Task:
    """Build the toy; TOY_STOP_AT asks for a stop in the loss of that update, as a scheduler would."""
    config = run.config
    paddle.seed(config.SEED)
    model = ToyContrast(config)

    def loss(model, batch, rng):
        return model(*batch.views, batch.indices)

    decay = config.TRAIN.WEIGHT_DECAY
    groups = param_groups(model.encoder, decay, config.TRAIN.LAYER_DECAY)
    groups += param_groups(model.projector, 0.0, lr_scale=2.0)
    task = Task(
        "toy",
        model,
        configured_optimizer(config, groups),
        loss,
        saved=model.encoder,
        after_update=lambda step, total: model.follow(config.TOY.MOMENTUM),
        ema=weight_average(config, model.encoder),
    )
    return stop_at(task, int(os.environ.get("TOY_STOP_AT", "0")))


def transform(config):
    return train_transform(config, crop_and_flip(config, [0.3, 1.0]), crop_and_flip(config, [0.6, 1.0]))


METHOD = Method("pretrain", build, transform)


def register(keys: Path, methods: dict = dispatch.METHODS, keys_of_methods: dict = config_module.METHODS) -> None:
    """Add the toy to both halves of the table."""
    methods["TOY"], keys_of_methods["TOY"] = METHOD, config_module.read_method_keys(keys)


# ---- what it must do ---------------------------------------------------------------------------

SIZES = ["DATA.BATCH_SIZE", 48, "SAVE_FREQ_STEPS", 1, "KEEP_LAST", 99, "REPORT_FREQ", 1, "TRAIN.BASE_LR", 1e-3]
OPTS = [*TINY, "MODEL.TYPE", "TOY", *SIZES, "TRAIN.LAYER_DECAY", 0.8, "TRAIN.EMA_DECAY", 0.9, "TRAIN.NUM_EPOCHS", 1]


@pytest.fixture(autouse=True)
def toy(tmp_path_factory, monkeypatch):
    """Add the toy to the table for a test, and return the file with its keys."""
    keys = tmp_path_factory.mktemp("keys") / "toy.yaml"
    keys.write_text(KEYS)
    methods, keys_of_methods = {**dispatch.METHODS}, {**config_module.METHODS}
    register(keys, methods, keys_of_methods)
    monkeypatch.setattr(dispatch, "METHODS", methods)
    monkeypatch.setattr(config_module, "METHODS", keys_of_methods)
    return keys


def write_config(folder: Path, *opts) -> Path:
    path = folder / "toy-run.yaml"
    path.write_text(get_config(None, [*OPTS, *opts]).dump())
    return path


def train(folder: Path, *flags: str, name: str = "run") -> Path:
    cfg = write_config(folder)
    main_multi_gpu_pretrain.main(["-cfg", str(cfg), "-output", str(folder), *flags, "-opts", "RUN", name])
    return folder / name


def tensors(checkpoint_dir: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a checkpoint, by file and name."""
    found = {}
    for name in (MODEL_FILE, EXTRA_FILE, EMA_FILE, OPTIMIZER_FILE):
        if not (checkpoint_dir / name).is_file():
            continue
        file = weight_files.read(checkpoint_dir / name, "optimizer" if name == OPTIMIZER_FILE else None)
        found |= {f"{name}/{key}": tensor.read() for key, tensor in file.tensors.items()}
    return found


def assert_same(found: Path, expected: Path) -> None:
    found, expected = tensors(find(found)), tensors(find(expected))
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a run of the toy: 22 updates on 1,024 images."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        keys = folder / "toy.yaml"
        keys.write_text(KEYS)
        patch.setattr(dispatch, "METHODS", {**dispatch.METHODS})
        patch.setattr(config_module, "METHODS", {**config_module.METHODS})
        register(keys, dispatch.METHODS, config_module.METHODS)
        return train(folder)


@pytest.mark.quick
def test_it_trains_and_logs_both_parts(trained):
    records = [record for record in read_log(trained) if record["event"] == "train"]
    assert len(records) == 22
    # From the third update on: the queue begins with noise, which is easy to tell from images.
    assert np.mean([r["loss"] for r in records[-3:]]) < 0.9 * np.mean([r["loss"] for r in records[2:5]])
    assert all(-1.0 <= record[name] <= 1.0 for record in records for name in ("alignment", "spread"))
    assert not (trained / BEST).exists()  # nothing is evaluated
    assert {path.name for path in find(trained).iterdir()} >= {MODEL_FILE, EXTRA_FILE, OPTIMIZER_FILE}


@pytest.mark.quick
def test_the_encoder_is_saved_and_the_rest_beside_it(trained):
    saved = tensors(find(trained))
    assert saved[f"{MODEL_FILE}/cls_token"].shape == (1, 1, 32)
    assert not [name for name in saved if name.startswith((MODEL_FILE, "ema")) and ("queue" in name or "proj." in name)]
    ids = saved[f"{EXTRA_FILE}/queue_ids"]
    assert (ids.dtype, len(set(ids.tolist()))) == (np.int64, 96)
    assert saved[f"{EXTRA_FILE}/pointer"] == 1024 % 96
    own, copied = saved[f"{MODEL_FILE}/cls_token"], saved[f"{EXTRA_FILE}/target_encoder.cls_token"]
    assert 0 < np.abs(own - copied).max() < 0.1  # the copy follows
    assert not np.array_equal(saved[f"{EMA_FILE}/cls_token"], own)


@pytest.mark.quick
@pytest.mark.parametrize("stop", [1, 9])
def test_stopped_and_resumed_it_is_bit_identical(trained, tmp_path, monkeypatch, stop):
    monkeypatch.setenv("TOY_STOP_AT", str(stop))
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path)
    assert stopped.value.code == 75
    monkeypatch.delenv("TOY_STOP_AT")
    assert find(tmp_path / "run").name == f"step-{stop:08d}"
    train(tmp_path, "-resume", "auto")
    assert_same(tmp_path / "run", trained)
    losses = [
        [(record["step"], record["loss"], record["spread"]) for record in read_log(run) if record["event"] == "train"]
        for run in (tmp_path / "run", trained)
    ]
    assert losses[0] == losses[1]


@pytest.mark.quick
@pytest.mark.parametrize("damage", ["missing", "other queue"])
def test_it_does_not_go_on_without_its_queue(trained, tmp_path, damage):
    copied = tmp_path / "run" / "step-00000003"
    copied.mkdir(parents=True)
    for file in (trained / "step-00000003").iterdir():
        if file.name != "manifest.json" and (file.name != EXTRA_FILE or damage != "missing"):
            (copied / file.name).write_bytes(file.read_bytes())
    opts = ["TOY.QUEUE_SIZE", 64] if damage == "other queue" else []
    said = "extra.pdparams: missing, and toy cannot resume" if damage == "missing" else "holds other tensors .*queue"
    with pytest.raises(ValueError, match=said):
        main_multi_gpu_pretrain.main(["-resume", str(copied), "-cfg", str(write_config(tmp_path, *opts))])


@pytest.mark.quick
def test_finetuning_and_probing_start_from_it(trained, tmp_path, tiny_yaml, capsys):
    encoder = weight_files.read(find(trained) / EMA_FILE).tensors  # what is meant where there is an average
    for mode, main in (("finetune", main_multi_gpu_finetune.main), ("linearprobe", main_multi_gpu_linearprobe.main)):
        cfg = tiny_yaml(mode, "TRAIN.BASE_LR", 0.0, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 256)
        assert 0 <= main(["-cfg", cfg, "-pretrained", str(trained), "-output", str(tmp_path)])["acc1"] <= 100
        (run,) = tmp_path.glob(f"{mode}-*")
        weights = weight_files.read(find(run) / MODEL_FILE).tensors
        assert np.array_equal(weights["cls_token"].read(), encoder["cls_token"].read())
    assert "another shape" not in capsys.readouterr().out


@pytest.mark.quick
def test_it_is_ported(trained, tmp_path):
    told = port(find(trained) / MODEL_FILE, tmp_path / "toy.safetensors")
    assert "encoder only" in str(told)
    port(tmp_path / "toy.safetensors", tmp_path / "timm.pth", target="timm")
    back = port(tmp_path / "timm.pth", tmp_path / "back.pdparams", heads=(4, None))
    assert back.architecture == told.architecture
    own, found = (weight_files.read(file).tensors for file in (find(trained) / MODEL_FILE, tmp_path / "back.pdparams"))
    assert own.keys() == found.keys()
    assert all(np.array_equal(own[name].read(), found[name].read()) for name in own)


@pytest.mark.quick
def test_tools_read_it(trained, tmp_path):
    figures = knn.main([str(trained), "-k", "1", "5"])
    assert all(25.0 < value <= 100.0 for value in figures.values())  # four classes
    features.main([str(trained), "-out", str(tmp_path / "features.npz"), "-layers", "1", "2"])
    with np.load(tmp_path / "features.npz") as arrays:
        assert arrays["layer_2"].shape == (256, 32)
    page = report.main([str(trained), "-out", str(tmp_path / "report.html")]).read_text()
    assert "alignment (train)" in page
    assert "No pictures" not in page
    visualise.main([str(trained), "-attention", "-num", "2", "-out", str(tmp_path / "attention.png")])
    with pytest.raises(ValueError, match="reconstructing needs the decoder"):
        visualise.main([str(trained), "-num", "2", "-out", str(tmp_path / "no.png")])
    assert analyse.main([str(trained), "-num", "32", "-out", str(tmp_path / "analysis")])[0][0]["images"] == 32


@pytest.mark.quick
def test_scripts_say_which_of_them_runs_it(toy, tmp_path):
    with pytest.raises(ValueError, match="MODEL.TYPE TOY, which main_multi_gpu_pretrain.py runs"):
        main_multi_gpu_finetune.main(["-cfg", str(write_config(tmp_path))])
    with pytest.raises(ValueError, match="-eval: MODEL.TYPE TOY has no classifier"):
        main_multi_gpu_pretrain.main(["-cfg", str(write_config(tmp_path)), "-eval"])


# ---- two ranks


def launch(keys: Path, folder: Path, cfg: Path, *flags: str, **environment: str) -> tuple[int, str]:
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        "2",
        "--log_dir",
        str(folder / "logs"),
    ]
    command += [str(Path(__file__)), str(keys), "-cfg", str(cfg), "-output", str(folder), "-device", "cpu", *flags]
    done = subprocess.run(
        command, env=runtime.original_environment() | environment, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    logs = "\n".join(path.read_text() for path in folder.glob("logs/workerlog.*"))
    return done.returncode, done.stdout + done.stderr + logs


@pytest.mark.slow
def test_two_ranks_are_one_with_the_joint_batch_and_resume_bit_identically(toy, trained, tmp_path):
    cfg = write_config(tmp_path, "DATA.BATCH_SIZE", 24)
    code, output = launch(toy, tmp_path, cfg, "-opts", "RUN", "straight")
    assert code == 0, output
    one, two = tensors(find(trained)), tensors(find(tmp_path / "straight"))
    assert np.array_equal(one[f"{EXTRA_FILE}/queue_ids"], two[f"{EXTRA_FILE}/queue_ids"])
    for name, expected in one.items():
        if name.startswith(MODEL_FILE):  # the last update takes 16 images, 8 on each rank
            assert_close(comparable(name, two[name]), comparable(name, expected), 1e-3, name)
    code, output = launch(toy, tmp_path, cfg, "-opts", "RUN", "stopped", TOY_STOP_AT="4")
    assert code != 0
    assert "stops and saves after this update" in output
    code, output = launch(toy, tmp_path, cfg, "-resume", "auto", "-opts", "RUN", "stopped")
    assert code == 0, output
    assert "resumed" in output
    assert_same(tmp_path / "stopped", tmp_path / "straight")


if __name__ == "__main__":
    register(Path(sys.argv[1]))
    main_multi_gpu_pretrain.main(sys.argv[2:])
