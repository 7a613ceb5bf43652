"""Files of strangers: nothing of them is run, none hangs or takes memory without end, all get one clear line."""

import gzip
import io
import os
import pickle
import stat
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import datasets
from errors import UserError, escape_controls, printable
from launch import run_directory
from pages import html, plots
from pipeline import builtin_sets, loading, sources
from pipeline.file_images import FileImages
from pipeline.folders import find_images
from pipeline.samplers import EvalSampler
from storage import run_state
from storage.array_files import read_arrays
from storage.json_files import read_json
from tests.helpers.saved_runs import save, trained
from tools import pack_dataset
from training import checkpoints

pytestmark = pytest.mark.quick
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.fixture(autouse=True)
def soon():
    """Fail a test that takes long."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < 30


def open_folder(root, split="val", needs_labels=True):
    return datasets.open_source("folder", str(root), split, num_classes=3, needs="label" if needs_labels else "none")


# ---- images


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_no_image_starts_a_program(tmp_path, monkeypatch, name):
    marker, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(EPS)
    problem = sources.why_unreadable(open_folder(tmp_path), 0, 3)
    assert "its content is of none of the formats JPEG, PNG" in problem
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_is_named_before_and_never_waited_for(tmp_path, kind):
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    odd = folder / "odd.png"
    {"fifo": os.mkfifo, "device": lambda path: os.symlink("/dev/zero", path), "folder": os.mkdir}[kind](odd)
    source = open_folder(tmp_path)
    if kind == "folder":
        assert [path.name for path in source.paths] == ["good.png"]
        return
    with pytest.raises(UserError, match="1 files are missing: .*odd.png"):
        source.check(num_classes=1, channels=3)
    assert "not a regular file" in sources.why_unreadable(source, 1, 3)


def test_folders_that_links_lead_to_again_are_listed_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "b" / "x.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "here").symlink_to(".")
    assert [str(path.relative_to(tmp_path)) for path in map(Path, find_images(tmp_path))] == ["a/b/x.png"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c").symlink_to(tmp_path / "a")
    found = map(Path, find_images(tmp_path / "linked"))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["linked/c/b/x.png"], "a linked folder counts"


def test_many_ways_and_deep_folders_are_no_trouble(tmp_path):
    for level in range(30):
        (tmp_path / f"level{level}").mkdir()
        for name in ("one", "two"):
            (tmp_path / f"level{level}" / name).symlink_to(tmp_path / f"level{level + 1}")
    assert list(find_images(tmp_path)) == []
    deep = tmp_path / "deep"
    deep.mkdir()
    descriptor = os.open(deep, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    try:
        assert list(find_images(deep)) == []
    finally:  # pytest and Python cannot delete what is so deep
        subprocess.run(["rm", "-rf", str(deep)], check=True)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="a: cannot be listed: Permission denied"):
        list(find_images(tmp_path))


def test_doubles_and_odd_names_are_told(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    odd = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "y.png")
    os.rename(tmp_path / "y.png", os.path.join(tmp_path, odd))
    (tmp_path / "val_list.txt").write_text("x.png 0\nx.png 0\nx.png 1\n")
    source = datasets.open_source("imagenet2012", str(tmp_path), "val", num_classes=2)
    (note,) = source.check(num_classes=2, channels=3)
    assert "2 images are listed more than once, 1 of them with two labels: " in note
    source = FileImages(find_images(tmp_path), np.zeros(2, np.int64), tmp_path)
    (note,) = source.check(num_classes=None, channels=3)
    assert "1 names are not UTF-8, and are shown with escapes: " in note
    assert "caf" in note
    assert note.isascii()
    assert next(iter(loading.Loader(source, lambda i, r: np.zeros(1), EvalSampler(2, 2)))).images.shape == [2, 1]


@pytest.mark.parametrize("label", ["999999999", "1000000"])
def test_a_label_without_sense_allocates_nothing(tmp_path, label):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "val_list.txt").write_text(f"x.png {label}\n")
    source = datasets.open_source("imagenet2012", str(tmp_path), "val", num_classes=2)
    with pytest.raises(UserError, match="has the label .*; at most 999,999"):
        source.check(num_classes=None, channels=3)


@pytest.mark.parametrize("path", ["a\0b.png", "x/" * 2500 + "a.png"])
def test_paths_that_cannot_be_are_named(tmp_path, path):
    (tmp_path / "val_list.txt").write_text(f"{path} 0\n")
    with pytest.raises(UserError, match="line 1: .* is not a path"):
        datasets.open_source("imagenet2012", str(tmp_path), "val", num_classes=2)


def test_unknown_users_are_named():
    with pytest.raises(UserError, match="-data_path ~nobody_here/x: "):
        datasets.open_source("folder", "~nobody_here/x", "val", num_classes=2)


# ---- archives and tables of data sets


def cifar(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 3]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    return datasets.open_source("cifar10", str(tmp_path), "val", num_classes=10)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 10], [0, 1, 2, -1], [0, 1, 2, 2.5], ["0"] * 4, 7, None]
)
def test_cifar_labels_of_another_number_or_kind_are_refused(tmp_path, labels):
    assert len(cifar(tmp_path)) == 4
    with pytest.raises(UserError, match="not the published python version"):
        cifar_with(tmp_path, b"labels", labels)


def cifar_with(tmp_path, key, value):
    folder = tmp_path / "cifar-10-batches-py"
    batch = pickle.loads((folder / "test_batch").read_bytes())
    batch[key] = value
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    return datasets.open_source("cifar10", str(tmp_path), "val", num_classes=10)


@pytest.mark.parametrize("data", [np.zeros((4, 3071), np.uint8), np.zeros((4, 3072)), [1, 2], None])
def test_cifar_pixels_of_another_kind_are_refused(tmp_path, data):
    cifar(tmp_path)
    with pytest.raises(UserError, match="not the published python version"):
        cifar_with(tmp_path, b"data", data)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(builtin_sets, "_MOST_ARCHIVE_BYTES", 8 << 20)
    member = tarfile.TarInfo("cifar-10-batches-py/filler")
    member.size, member.type = 64 << 20, kind
    with gzip.open(tmp_path / "cifar-10-python.tar.gz", "wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match="unpacks to more than 8 MiB") as caught:
        datasets.open_source("cifar10", str(tmp_path), "val", num_classes=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [[0.5, 1, 2], [np.nan, 1, 2], [-4, 1, 2], ["a", "b", "c"], [10**7, 1, 2]])
def test_mat_labels_of_another_kind_are_refused(tmp_path, labels):
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": np.array(labels)})
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [1], "valid": [2], "tstid": [3]})
    with pytest.raises(UserError, match="its labels are (not integers|not from 1)"):
        datasets.open_source("flowers102", str(tmp_path), "val", num_classes=None)


def test_a_mat_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    from pipeline import published_datasets

    monkeypatch.setattr(published_datasets, "_MOST_MAT_BYTES", 1 << 20)
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": np.ones(1 << 20)}, do_compression=True)
    assert (tmp_path / "imagelabels.mat").stat().st_size < 1 << 16
    with pytest.raises(UserError, match="unpacks to more than 1 MiB"):
        datasets.open_source("flowers102", str(tmp_path), "val", num_classes=None)


# ---- packed data sets, checkpoints, weights


@pytest.mark.parametrize(
    "text",
    ["[]", '{"version": true}', '{"version": 2, "class_names": [1]}', '{"version": 2, "class_names": "cat"}', "{"],
)
def test_a_packed_json_of_other_types_is_refused(tmp_path, image_folder, text):
    pack_dataset.main([str(image_folder), str(tmp_path / "packed"), "-size", "0"])
    (tmp_path / "packed" / "packed.json").write_text(text)
    with pytest.raises(UserError, match="packed.json: .*pack the data set again"):
        datasets.open_source("folder", str(tmp_path / "packed"), "val", num_classes=3)


def test_an_index_that_claims_much_is_refused(tmp_path):
    file = tmp_path / "index.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(1 << 20, np.int64))
        archive.writestr("image.npy", buffer.getvalue())
    with pytest.raises(UserError, match="compressed, or its sizes are wrong"):
        read_arrays(file, 1 << 30, "delete it")


@pytest.mark.parametrize(
    "text", ["", "[]", "nan", '{"step": true}', '{"step": -1}', '{"step": 1, "best": []}', "[" * 99999]
)
def test_a_state_of_another_kind_is_one_line(tmp_path, text):
    path = save(tmp_path, 1, *trained(steps=1))
    (path / "state.json").write_text(text)
    with pytest.raises(UserError, match="state.json: "):
        run_state.read_state(path)


@pytest.mark.parametrize("text", ["[]", '{"model.pdparams": 3}', '{"../x": {"size": 1, "sha256": "a"}}', "{" * 99])
def test_a_manifest_of_another_kind_is_damage(tmp_path, text):
    path = save(tmp_path, 1, *trained(steps=1))
    (path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json is damaged"):
        run_directory.find(path)


@pytest.mark.parametrize(
    "change", [lambda a: a[:1], lambda a: a.reshape(-1), lambda a: np.float32(1), lambda a: a * np.nan]
)
def test_moments_of_another_shape_are_refused(tmp_path, change):
    model, optimizer = trained(steps=1)
    state = checkpoints.optimizer_state_by_name(model, optimizer)
    key = next(key for key in state if key.endswith("moment1_0") and state[key].ndim > 1)
    with pytest.raises(UserError, match="optimizer state .* (is not as this run's|not finite)"):
        checkpoints.set_optimizer_state_by_name(model, optimizer, {**state, key: change(state[key])}, tmp_path)


def test_references_to_references_are_not_written_out():
    nested: object = "x"
    for _ in range(60):
        nested = [nested, nested]
    assert printable(nested) == "a list"


def test_a_storage_key_of_references_does_not_hang(tmp_path):
    from storage import weight_files

    memo = b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(50))
    pickled = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
    pickled += b"ctorch\nFloatStorage\n"
    pickled += b"]q\x00" + memo + b"X\x03\x00\x00\x00cpuK\x01tQK\x00(K\x01t(K\x01t\x89ccollections\nOrderedDict\n)RtRs."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(UserError, match="a.pth"):
        weight_files.read(tmp_path / "a.pth")


def test_nested_keys_of_any_instruction_do_not_hang(tmp_path):
    from storage import safe_pickle

    nested = b")" + b"2\x86" * 60
    for name, content in (
        ("dict", b"\x80\x02(" + nested + b"K\x01d."),
        ("setitem", b"\x80\x02}" + nested + b"K\x01s."),
        ("setitems", b"\x80\x02}(" + nested + b"K\x01u."),
        ("tuple of a dict", b"\x80\x02(" + nested + b"K\x01dK\x02\x86."),
    ):
        (tmp_path / "a.pdparams").write_bytes(content)
        with pytest.raises(UserError, match="entry whose name is a tuple"):
            safe_pickle.load(tmp_path / "a.pdparams", name)


def test_a_text_that_is_used_again_and_again_has_a_price(tmp_path):
    from storage import safe_pickle

    text = b"X" + (1 << 20).to_bytes(4, "little") + b"\x00" * (1 << 20)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01bt\x52"
    state = (
        b"(K\x01(J" + (1 << 20).to_bytes(4, "little") + b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR\x89" + text + b"tq\x01"
    )
    content = b"\x80\x02]" + array + state + b"ba" + (array + b"h\x01ba") * 20 + b"."
    (tmp_path / "a.pdparams").write_bytes(content)
    with pytest.raises(UserError, match="makes more of its bytes than plain data needs"):
        safe_pickle.load(tmp_path / "a.pdparams", "a")


@pytest.mark.parametrize("name", ["fifo", "device"])
def test_pipes_and_devices_are_no_index(tmp_path, name):
    from config import get_config

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path) if name == "fifo" else path.symlink_to("/dev/zero")

    put(tmp_path / "annotations" / "test.txt")
    put(tmp_path / "val2018.json")
    put(tmp_path / "imagelabels.mat")
    for dataset in ("pets", "inat2018", "flowers102"):
        with pytest.raises(UserError, match="not a regular file"):
            datasets.open_source(dataset, str(tmp_path), "val", num_classes=None)
    put(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        get_config(tmp_path / "a.yaml")


def test_deep_and_large_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ' * 99999)
    with pytest.raises(UserError, match="damaged, or no JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"a": "' + "x" * 2000)
    with pytest.raises(UserError, match="and at most 1,000 are sane"):
        read_json(tmp_path / "b.json", most_bytes=1000)


# ---- names on their way out


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "</pre><script>", "a&b\"'<"])
def test_no_name_becomes_markup(tmp_path, name):
    sections = [(name, html.html_table([name], [[name]]) + html.html_text(name) + html.html_paragraph(name))]
    sections += [("x", html.html_figure(Image.new("L", (2, 2)), name))]
    html.write_page(tmp_path / "x.html", name, sections)
    text = (tmp_path / "x.html").read_text()
    assert name not in text
    for tag in ("<script", "<img src=x", "onerror=alert(1)>"):
        assert tag not in text


@pytest.mark.parametrize("name", [r"$\frac", "$x^", "a $ b $ {", "\x1b[31m"])
def test_names_are_no_formulas(name):
    assert plots.draw_curves([(name, name, {name: [(0, 1), (1, 2)], "other": [(0, 1)]})]).size[0] > 100
    assert plots.draw_matrix(np.eye(2), [name, "b"]).size[0] > 100


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "a\rb", "\x07", "\u202egnp.exe", "\udce9"])
def test_names_do_not_steer_the_terminal(text):
    assert escape_controls(f"photo {text}\n").isascii()
    assert escape_controls("Füchse, 狐 and\ttabs\n") == "Füchse, 狐 and\ttabs\n"


def test_the_log_escapes_names(tiny_run):
    run = tiny_run("pretrain")
    run.bad_images.append("photo\x1b[31m.jpg\udce9: cannot be read")
    run.report_bad_images()
    for name in ("log.txt", "bad_images.txt"):
        text = (run.directory / name).read_text()
        assert "\x1b" not in text
        assert r"\x1b[31m" in text
