"""The three main scripts, chained on generated photos, and what they say when something is wrong."""

import json
import re
import shutil
import sys

import numpy as np
import paddle
import pytest

import checkpoint
import main_multi_gpu_finetune
import main_multi_gpu_linearprobe
import main_multi_gpu_pretrain
from launch import command_line

MAINS = {
    "pretrain": main_multi_gpu_pretrain.main,
    "finetune": main_multi_gpu_finetune.main,
    "linearprobe": main_multi_gpu_linearprobe.main,
}


@pytest.fixture
def start(tiny_yaml, image_folder, tmp_path):
    """Return a function: mode, configuration overrides and flags to the result of the main script."""

    def run(mode, *flags, opts=()):
        cfg = tiny_yaml(mode, "MODEL.NUM_CLASSES", 3, "DATA.NUM_WORKERS", 0, "SAVE", str(tmp_path), *opts)
        return MAINS[mode](["-cfg", cfg, "-dataset", "imagenet2012", "-data_path", str(image_folder), *map(str, flags)])

    return run


def only_run(folder, mode):
    (run,) = folder.glob(f"{mode}-*")
    return run


@pytest.mark.quick
def test_pretrain_probe_finetune_evaluate_resume(start, tmp_path, capsys):
    assert start("pretrain")["loss"] > 0
    pretrained = only_run(tmp_path, "pretrain")
    assert {"config.yaml", "log.jsonl", "log.txt", "train_images.txt", "latest", "step-00000006"} == {
        path.name for path in pretrained.iterdir()
    }

    probe = start("linearprobe", "-pretrained", pretrained)
    scores = start("finetune", "--pretrained", pretrained / "latest" / "model", "-amp")
    assert {"acc1", "acc5", "loss"} == set(probe) == set(scores)
    assert probe["acc5"] == 100.0
    output = capsys.readouterr().out
    assert re.search(r"in the file but not in the model, ignored: .*mask_token", output)
    assert "has no effect on CPU" in output

    for mode, expected in (("linearprobe", probe), ("finetune", scores)):
        run = only_run(tmp_path, mode)
        evaluated = start(mode, "-eval", "-pretrained", run / "latest")
        assert evaluated == pytest.approx({name: expected[name] for name in evaluated}, rel=1e-6)
        assert start(mode, "-eval", "-resume", run) == evaluated

    with pytest.raises(ValueError, match="the file is a pretrained autoencoder: finetune or probe it first"):
        start("finetune", "-eval", "-pretrained", pretrained)

    with pytest.raises(ValueError, match="use main_multi_gpu_linearprobe.py for probes"):
        start("finetune", "-eval", "-pretrained", only_run(tmp_path, "linearprobe"), opts=["MODEL.GLOBAL_POOL", False])

    # A finished run has nothing to do, and its directory is all that it needs.
    assert MAINS["finetune"](["-resume", str(only_run(tmp_path, "finetune"))]) == {}
    assert "nothing is left to do; a larger TRAIN.NUM_EPOCHS continues" in capsys.readouterr().out

    # Continue for one more epoch from the newest run.
    resumed = start("finetune", "-resume", "auto", opts=["TRAIN.NUM_EPOCHS", 3])
    assert resumed != scores
    assert only_run(tmp_path, "finetune").joinpath("step-00000009").is_dir()


@pytest.mark.quick
def test_weights_reach_the_classifier_and_the_head_is_new(start, tmp_path):
    start("pretrain")
    encoder = checkpoint.read_weights(only_run(tmp_path, "pretrain"))
    start("finetune", "-pretrained", only_run(tmp_path, "pretrain"), opts=["TRAIN.BASE_LR", 0.0, "TRAIN.END_LR", 0.0])
    model = checkpoint.read_weights(only_run(tmp_path, "finetune"))
    shared = set(encoder) & set(model)
    assert len(shared) == 28
    assert all(np.array_equal(encoder[name], model[name]) for name in shared)
    assert 1e-5 < model["classifier.weight"].std() < 4e-5  # drawn with 2e-5
    # A head of the same shape is kept, one of another shape is initialised again.
    start(
        "finetune",
        "-pretrained",
        only_run(tmp_path, "finetune"),
        "-output",
        tmp_path / "same",
        opts=["TRAIN.BASE_LR", 0.0, "TRAIN.END_LR", 0.0],
    )
    same = checkpoint.read_weights(only_run(tmp_path / "same", "finetune"))
    assert np.array_equal(same["classifier.weight"], model["classifier.weight"])
    start(
        "finetune",
        "-pretrained",
        only_run(tmp_path, "finetune"),
        "-output",
        tmp_path / "other",
        "-opts",
        "MODEL.NUM_CLASSES",
        9,
    )
    assert checkpoint.read_weights(only_run(tmp_path / "other", "finetune"))["classifier.weight"].shape == (32, 9)
    with pytest.raises(
        ValueError, match=r"classifier.weight \[32, 3\] in the file, \[32, 9\] in the model.*; set MODEL.NUM_CLASSES to"
    ):
        start("finetune", "-eval", "-pretrained", only_run(tmp_path, "finetune"), "-opts", "MODEL.NUM_CLASSES", 9)


@pytest.mark.quick
def test_other_image_size_and_evaluation_without_train_list(start, tmp_path, image_folder, tiny_yaml):
    start("finetune")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val").symlink_to(image_folder / "val")
    (tmp_path / "data" / "val_list.txt").symlink_to(image_folder / "val_list.txt")
    scores = MAINS["finetune"](
        [
            "-cfg",
            tiny_yaml("finetune", "MODEL.NUM_CLASSES", 3),
            "-dataset",
            "imagenet2012",
            "-data_path",
            str(tmp_path / "data"),
            "-output",
            str(tmp_path / "eval"),
            "-image_size",
            "24",
            "32",
            "-eval",
            "-pretrained",
            str(only_run(tmp_path, "finetune")),
        ]
    )
    assert set(scores) == {"acc1", "acc5", "loss"}
    record = json.loads(only_run(tmp_path / "eval", "eval").joinpath("log.jsonl").read_text())
    assert record["event"] == "eval"


@pytest.mark.quick
@pytest.mark.parametrize(
    "opts",
    [
        ["TRAIN.RAND_AUGMENT", False],
        ["TRAIN.AUTO_AUGMENT", True],
        ["TRAIN.MIXUP_PROB", 0.0],
        ["TRAIN.MIXUP_MODE", "elem", "TRAIN.CUTMIX_MINMAX", [0.2, 0.6]],
        ["MODEL.GLOBAL_POOL", False],
        ["TRAIN.OPTIMIZER.NAME", "AdamWDL"],
        ["MODEL.DROPOUT", 0.1, "MODEL.ATTENTION_DROPOUT", 0.1],
        ["DATA.IMAGE_CHANNELS", 1, "DATA.IMAGENET_MEAN", [0.5], "DATA.IMAGENET_STD", [0.25]],
        [
            "DATA.IMAGE_CHANNELS",
            4,
            "DATA.IMAGENET_MEAN",
            [0.5] * 4,
            "DATA.IMAGENET_STD",
            [0.25] * 4,
            "TRAIN.RAND_AUGMENT",
            False,
        ],
        ["TRAIN.LAST_EPOCH", 1],
    ],
)
def test_finetuning_options_train(start, opts):
    assert np.isfinite(start("finetune", opts=opts)["loss"])


@pytest.mark.quick
def test_dry_run_prints_the_plan_and_writes_nothing(start, tmp_path, capsys):
    assert start("pretrain", "-dry_run") == {}
    output = capsys.readouterr().out
    assert "  NUM_CLASSES: 3\n" in output
    assert "2 epochs x 3 updates = 6 steps, 3 of them warm-up" in output
    assert "0.01 x 8 / 256 = 0.0003125 at its peak" in output
    assert not list(tmp_path.glob("pretrain-*"))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("mode", "flags", "message"),
    [
        ("finetune", ["-pretrained", "nowhere"], "nowhere: no such file, with or without .pdparams"),
        ("finetune", ["-resume", "nowhere"], "-resume nowhere: neither a checkpoint nor a run directory"),
        ("finetune", ["-eval"], "-eval needs weights"),
        ("pretrain", ["-eval"], "finetune or probe the encoder"),
        ("pretrain", ["-image_size", "18"], "18 pixels are not divisible into patches"),
        ("pretrain", ["-opts", "TRAIN.LEARNING_RATE", "1"], "unknown configuration key TRAIN.LEARNING_RATE"),
        ("pretrain", ["-opts", "TRAIN.BASE_LR"], "-opts takes KEY VALUE or KEY=VALUE, and TRAIN.BASE_LR has no value"),
        ("finetune", ["-data_path", "nowhere"], "DATA.DATA_PATH=nowhere: no such directory"),
        ("finetune", ["-opts", "MODEL.NUM_CLASSES", "2"], "8 labels are not from 0 to 1"),
        ("finetune", ["-nproc", "2"], "work on the command line only"),
        ("finetune", ["-nproc", "2", "-nnodes", "2"], "needs -master IP:PORT"),
        ("finetune", ["-device", "gpu"], "Paddle sees no GPU"),
        ("finetune", ["-cfg", "nowhere.yaml"], "nowhere.yaml: No such file"),
    ],
)
def test_bad_input_is_named_before_training(start, tmp_path, mode, flags, message):
    if "gpu" in flags and paddle.device.is_compiled_with_cuda():
        pytest.skip("there is a GPU build")
    with pytest.raises(ValueError, match=message):
        start(mode, *flags)
    assert not list(tmp_path.rglob("step-*"))


@pytest.mark.quick
def test_config_of_another_mode_or_none_is_refused(tiny_yaml):
    with pytest.raises(
        ValueError, match="PRETRAIN, which main_multi_gpu_pretrain.py runs; this script is for FINETUNE"
    ):
        MAINS["finetune"](["-cfg", tiny_yaml("pretrain")])
    with pytest.raises(ValueError, match="-cfg is missing, for example -cfg configs/"):
        MAINS["finetune"]([])


@pytest.mark.quick
def test_pretraining_needs_no_labels(tiny_yaml, image_folder, tmp_path):
    results = MAINS["pretrain"](
        [
            "-cfg",
            tiny_yaml("pretrain"),
            "-dataset",
            "folder",
            "-data_path",
            str(image_folder / "val"),
            "-output",
            str(tmp_path),
        ]
    )
    assert np.isfinite(results["loss"])


@pytest.mark.quick
def test_named_run_is_not_overwritten(start, tmp_path):
    start("pretrain", "-opts", "RUN", "mine")
    with pytest.raises(ValueError, match="mine holds a run already: continue it with -resume auto"):
        start("pretrain", "-opts", "RUN", "mine")
    assert "loss" not in start("pretrain", "-resume", "auto", "-opts", "RUN", "mine")


@pytest.mark.quick
def test_auto_resume_without_a_run_starts_one(start, tmp_path):
    start("pretrain", "-resume", "auto")
    assert only_run(tmp_path, "pretrain")


@pytest.mark.quick
def test_user_errors_are_one_line_and_exit_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main_multi_gpu_finetune.py", "-cfg", "nowhere.yaml"])
    with pytest.raises(SystemExit) as stop:
        command_line.run(MAINS["finetune"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: -cfg ")
    assert error.count("\n") == 1


@pytest.mark.quick
def test_flags_are_frozen():
    flags = {option for action in command_line.make_parser("finetune", "")._actions for option in action.option_strings}
    paddlevit = (
        "cfg dataset data_path output batch_size batch_size_eval image_size accum_iter pretrained resume last_epoch"
    )
    names = f"{paddlevit} eval amp opts dry_run device nproc nnodes master node_rank teacher gpu_memory".split()
    assert flags == {"-h", "-help", "--help"} | {dash + name for name in names for dash in ("-", "--")}


@pytest.mark.quick
def test_bad_images_are_listed_in_the_run(start, image_folder, tmp_path, capsys):
    folder = tmp_path / "photos"
    shutil.copytree(image_folder, folder)
    bad = folder / "train" / "dog" / "3 1.jpg"
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match="3 1.jpg: cannot be read as an image"):
        start("pretrain", "-data_path", folder)
    start("pretrain", "-data_path", folder, opts=["DATA.BAD_IMAGES", "skip", "RUN", "skipping"])
    assert "warning: 1 images skipped so far, the last one" in capsys.readouterr().out
    (line,) = (tmp_path / "skipping" / "bad_images.txt").read_text().splitlines()
    assert line.startswith(str(bad))


@pytest.mark.quick
def test_the_start_of_a_run_looks_at_the_data(start, image_folder, tmp_path, capsys):
    start("finetune", "-dry_run")
    output = capsys.readouterr().out
    assert "train: 24 images of 3 classes, 8 to 8 each" in output
    assert "val: 12 images of 3 classes, 4 to 4 each" in output
    shutil.copytree(image_folder, tmp_path / "photos")
    (tmp_path / "photos" / "val" / "cat" / "0 0.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="0 0.jpg: cannot be read as an image .*-opts DATA.BAD_IMAGES skip continues"):
        start("finetune", "-dry_run", "-data_path", tmp_path / "photos")
    start("finetune", "-dry_run", "-data_path", tmp_path / "photos", opts=["DATA.BAD_IMAGES", "skip"])
    assert "0 0.jpg: cannot be read as an image" in capsys.readouterr().out


@pytest.mark.quick
def test_an_evaluation_whose_loss_is_not_finite_fails(start, tmp_path):
    start("finetune", "-opts", "RUN", "mine", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    weights = checkpoint.read_weights(tmp_path / "mine")
    weights["classifier.weight"] = np.sign(weights["classifier.weight"]) * np.float32(3e38)  # finite; logits are not
    paddle.save({name: paddle.to_tensor(value) for name, value in weights.items()}, str(tmp_path / "huge.pdparams"))
    with pytest.raises(ValueError, match="huge: the loss is nan"):
        start("finetune", "-eval", "-pretrained", tmp_path / "huge")
