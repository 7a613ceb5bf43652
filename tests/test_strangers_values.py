"""Values and files of strangers, that are not as they should be: one clear line each, and nothing takes for ever."""

import io
import json
import os
import pickle
import socket
import threading
import time

import numpy as np
import pytest
from PIL import Image

from config import get_config
from errors import UserError, one_name
from methods import contrastive_tuning, linearprobe
from methods.load_models import load_encoder
from methods.nnclr_head import NNCLRHead
from pages import plots, run_page
from pipeline import prompts
from storage import safe_pickle, weight_files
from tests.conftest import MODES, TINY
from tests.helpers.recipes import recipe
from tests.helpers.saved_runs import fit_pretrain
from tools import knn, sweep
from training import loaders
from training.log import RunLog
from training.run import Run
from zoo import __main__ as zoo_main
from zoo import download

pytestmark = pytest.mark.quick


# ---- names of classes


def write(path, content) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.yaml", b"- 2001-01-01\n- no\n- [1, one]\n"),
        ("c.json", b'["2001-01-01", "no", ["1", "one"]]'),
        ("c.txt", b"2001-01-01\rno\r1, one\r"),
    ],
)
def test_names_are_the_texts_that_are_written(tmp_path, name, content, mark):
    assert prompts.read_class_names(write(tmp_path / name, mark + content)) == [["2001-01-01"], ["no"], ["1", "one"]]


@pytest.mark.parametrize("kind", [object, "U9"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpys_names_of_two_axes_are_read(tmp_path, kind, order):
    names = np.array([["cat", "kitten"], ["dog", "puppy"], ["cow", "calf"]], dtype=kind, order=order)
    np.save(tmp_path / "c.npy", names)
    assert prompts.read_class_names(tmp_path / "c.npy") == names.tolist()


def growing_array() -> bytes:
    """Return a `.npy` file of objects, in which one long list is a million times."""
    names = [f"name {number}" for number in range(3000)]
    array = np.empty(3000, object)
    array[:] = [names] * 3000
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.yaml", "a: &a [x]\nb: *a\n", "a reference"),
        ("c.yaml", "[" * 200 + "]" * 200, "nested more than"),
        ("c.json", b"[" * 100_000 + b"]" * 100_000, "cannot be read"),
        ("c.json", "{}", "no class names"),
        ("c.npy", growing_array(), "more than 2,000,000 names"),
        ("c.npy", npy("{'descr': '<U9', 'fortran_order': False, 'shape': (99999999999,), }"), "names; from 1 to"),
        ("c.npy", npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1000000000, 0), }"), "names; from 1 to"),
        ("c.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1000000000, 0), }"), "names; from 1 to"),
        ("c.npy", npy("{'descr': '<U9', 'fortran_order': False, 'shape': (9,), }"), "texts are needed"),
        ("c.npy", npy("{'descr': '<U9', 'fortran_order': __import__('os'), 'shape': (1,), }"), "not a NumPy file"),
        ("c.npy", npy("(" * 100), "not a NumPy file"),
        ("c.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "texts are needed"),
    ],
)
def test_names_have_a_budget(tmp_path, name, content, words):
    started = time.monotonic()
    with pytest.raises(UserError, match=words):
        prompts.read_class_names(write(tmp_path / name, content))
    assert time.monotonic() - started < 20


def test_lists_that_contain_themselves_are_refused(tmp_path):
    array = np.empty(1, object)
    array[0] = endless = []
    endless.append(endless)
    np.save(tmp_path / "c.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match="class 0 needs a name"):
        prompts.read_class_names(tmp_path / "c.npy")


def test_a_name_that_is_one_text_is_one_name():
    assert prompts.sentences(["a {}", "the {}"], ["cat", ["dog", "hound"]]) == [
        ["a cat", "the cat"],
        ["a dog", "a hound", "the dog", "the hound"],
    ]


# ---- weights


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_beside_weights_are_counted(tmp_path, protocol):
    values = {"w": np.zeros((2, 3), np.float32), "epochs": {1, 2}, "frozen": frozenset("a"), "z": 1 + 2j}
    values |= {"raw": bytearray(b"xy"), "steps": np.zeros(3, np.uint16), "phase": np.zeros(2, np.complex64)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(values, protocol))
    file = weight_files.read(tmp_path / "w.pdparams")
    assert set(file.tensors) == {"w", "steps", "phase"}
    assert set(file.others) == {"epochs", "frozen", "z", "raw"}


def test_a_set_of_nested_tuples_is_never_hashed():
    """(x, x) of itself, 60 times: a hash of it would take for ever."""
    doubled = b"".join(b"\x94h" + bytes([number]) + b"\x86" for number in range(60))
    data = b"\x80\x04\x8f(" + b")" + doubled + b"\x90."
    (value,) = safe_pickle.load(io.BytesIO(data), "x")
    assert value[0] is value[1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_array_that_two_entries_share_is_in_both(tmp_path, protocol):
    shared = np.ones((2, 3), np.float32)
    values = {"a": shared, "b": shared, "c": np.zeros(2, np.float32), "d": shared, "blob": bytearray(2 << 20)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(values, protocol))
    file = weight_files.read(tmp_path / "w.pdparams")
    assert all(np.array_equal(file.tensors[name].read(), shared) for name in "abd")
    assert file.others == ("blob",)


def test_large_arrays_stay_in_their_file(tmp_path):
    large = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"small": large[:2], "large": large}, 4))  # as we write them
    file = weight_files.read(tmp_path / "w.pdparams")
    assert np.array_equal(file.tensors["large"].read(), large)
    (tmp_path / "w.pdparams").write_bytes(b"")
    with pytest.raises(UserError, match="cut while it was read"):
        file.tensors["large"].read()
    (tmp_path / "w.pdparams").unlink()
    with pytest.raises(UserError, match="was there a moment ago"):
        file.tensors["large"].read()


@pytest.mark.parametrize("entry", ["module", "ema", "teacher", "net"])
def test_the_entry_that_holds_the_weights_is_named(tmp_path, entry):
    values = {entry: {"w": np.zeros(3, np.float32)}, "epoch": 3}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(values))
    with pytest.raises(UserError, match=f"weights are under {entry}: python -m port_weights .* -entry {entry}"):
        weight_files.read(tmp_path / "w.pdparams")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("DATA.IMAGE_CHANNELS", 1, "set DATA.IMAGE_CHANNELS 3, with as many numbers"),
        ("MODEL.PATCH_SIZE", 8, "set MODEL.PATCH_SIZE 4"),
    ],
)
def test_weights_of_other_images_name_the_key(tiny_run, tmp_path, key, value, words):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    fit_pretrain(run)
    more = ["DATA.IMAGENET_MEAN", [0.5], "DATA.IMAGENET_STD", [0.5]] if "CHANNELS" in key else []
    config = get_config(None, [*TINY, *MODES["finetune"], key, value, *more])
    with pytest.raises(UserError, match=words):
        load_encoder(run.directory, config)


# ---- settings


@pytest.mark.parametrize(
    "rates", [[True], [0.1, 0.1 + 1e-12], [float(n) for n in range(1, 5001)], [10**400], ["0.1"], [0.0]]
)
def test_rates_of_a_sweep_of_heads_are_checked(tiny_run, rates):
    run = tiny_run("linearprobe", "TRAIN.LR_SWEEP", rates)
    with pytest.raises(UserError, match=r"TRAIN.LR_SWEEP=.*must be a list of different numbers above 0"):
        linearprobe.build(run)


@pytest.mark.parametrize(
    ("key", "value"), [("SMOOTHING", 0.2), ("MIXUP_ALPHA", 0.0), ("CUTMIX_ALPHA", 0.5), ("RANDOM_ERASE_PROB", 0.5)]
)
@pytest.mark.parametrize("kind", ["digits_wsp", "digits_pretrain", "digits_lit", "digits_linearprobe"])
def test_settings_that_a_method_does_not_use_are_refused(kind, key, value):
    with pytest.raises(UserError, match=f"TRAIN.{key}=.*does not use it"):
        get_config(recipe(kind), [f"TRAIN.{key}", value])


def test_a_grid_is_counted_before_it_is_made():
    started = time.monotonic()
    with pytest.raises(UserError, match="combinations; at most 10,000"):
        sweep.read_grid([f"K{n}=" + ",".join(map(str, range(100))) for n in range(12)])
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("runs", [{"a": 3}, {"a": {"acc1": [1]}}, {"a": None}])
def test_damaged_results_of_a_sweep_are_one_line(tmp_path, runs):
    about = {"recipe": "x", "flags": []}
    (tmp_path / "results.json").write_text(json.dumps({**about, "runs": runs}))
    with pytest.raises(UserError, match="damaged, its result of 'a'|damaged, its result of a"):
        sweep._read_done(tmp_path, about)


def test_a_loss_of_null_in_the_log_is_no_number(tmp_path):
    records = [{"event": "train", "step": 1, "epoch": 0.5, "loss": None}, {"event": "train", "step": 2, "lr": None}]
    figures = run_page.summarise(tmp_path, records)
    assert "last loss" not in figures
    assert figures["updates"] == 2


# ---- caches


@pytest.mark.parametrize("damage", ["cut", "nan", "empty", "text"])
def test_damaged_features_are_computed_again(tiny_run, tmp_path, capsys, damage):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    fit_pretrain(run)
    arguments = [str(run.directory), "-k", "1", "-cache", str(tmp_path / "cache")]
    wanted = knn.main(arguments)
    file = tmp_path / "cache" / "train" / "features.npy"
    content = file.read_bytes()
    array = np.load(file).copy()
    array[:] = np.nan
    if damage == "nan":
        np.save(file, array)
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no features"}[damage])
    capsys.readouterr()
    assert knn.main(arguments) == wanted
    assert "the features are computed again" in capsys.readouterr().out
    assert knn.main(arguments) == wanted
    assert capsys.readouterr().out.count("are taken from") == 2


def test_a_head_of_other_types_is_one_line(tmp_path):
    head = NNCLRHead(8, (16, 16, 8), 16, 32)
    state = {f"head.{name}": value.numpy() for name, value in head.state_dict().items()}
    state["head.queue_id"] = state["head.queue_id"].astype(np.float32)
    (tmp_path / "model.pdparams").write_bytes(pickle.dumps({"w": np.zeros(1, np.float32)}))
    (tmp_path / "extra.pdparams").write_bytes(pickle.dumps(state))
    with pytest.raises(UserError, match=r"the head differs: queue_id \[32\] in the file, \[32\] of int64 here"):
        contrastive_tuning.load_head(head, str(tmp_path / "model.pdparams"))


# ---- names of files


def test_a_line_break_in_a_name_forges_no_line_of_the_log(tmp_path, capsys):
    folder = tmp_path / "train" / "a\nwarning: forged class"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "x\nstep 9 forged.png")
    (folder / "y\nstep 8.png").write_bytes(b"no image")
    (tmp_path / "train" / "b\nempty").mkdir()
    config = get_config(None, ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path), "DATA.BAD_IMAGES", "skip"])
    run = Run(config, None, RunLog(None))
    source = loaders.open_split(run, "train", "none")
    run.log.say(f"warning: {source.describe(1)}")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("warning: /", "train: ")) for line in lines), lines
    assert one_name("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"
    assert source.count_classes() == 2


def test_a_dollar_in_a_name_begins_no_formula():
    figure, (axis,) = plots.new_axes()
    axis.plot([1, 2, 3], [1.0, 10.0, 100.0], label=plots.plain("$x^2$ and $y"))
    axis.set_yscale("log")
    axis.legend()
    figure.canvas.draw()
    (text,) = axis.get_legend().get_texts()
    shown, is_formula = text._preprocess_math(text.get_text())
    assert (shown, is_formula) == ("$x^2$ and $y", False)
    ticks = [label._preprocess_math(label.get_text()) for label in axis.get_yticklabels() if label.get_text()]
    assert all(is_formula for _, is_formula in ticks), "powers of ten are formulas"


# ---- the zoo


def test_the_zoo_needs_no_home_to_describe(monkeypatch, capsys):
    for name in ("HOME", "XDG_CACHE_HOME", "MAE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert zoo_main.main(["info", "vit_base_patch16.mae"]) == 0
    assert "cache" in capsys.readouterr().out


def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_CACHE", str(tmp_path / "cache"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe or a device, and a file is needed"):
        download.fetch("https://example.org/x.pth", source=str(tmp_path / "pipe"), say=lambda line: None)


def test_a_server_that_sends_a_byte_per_connection_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_CACHE", str(tmp_path / "cache"))
    listener, count = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                request = peer.recv(4096).decode()
                start = int(request.partition("Range: bytes=")[2].partition("-")[0] or 0)
                count.append(start)
                lines = ["HTTP/1.1 206 Partial Content" if start else "HTTP/1.1 200 OK", 'ETag: "1"']
                lines += [f"Content-Range: bytes {start}-99999/100000"] if start else []
                peer.sendall("\r\n".join([*lines, f"Content-Length: {100000 - start}", "", ""]).encode() + b"x")

    threading.Thread(target=serve, daemon=True).start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.pth"
    with pytest.raises(UserError, match="bytes are kept"):
        download.fetch(address, say=lambda line: None, first_wait_secs=0.01)
    listener.close()
    assert len(count) <= 10
