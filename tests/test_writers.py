"""One rule for writing: never over an input, never over what is not from here; every writer is known."""

import ast
import json

import pytest
from PIL import Image

from errors import UserError
from port_weights import port
from runtime import ROOT
from storage import results
from tests.port_weights.test_engines import make_weights
from tests.test_import_graph import source_files
from tools import check_dataset, sweep

pytestmark = pytest.mark.quick

# Functions that write, make, rename or delete files, and what keeps them to the rule. A new one needs a place here:
# a result that a user names goes through `results.new_file`, `results.new_directory` or `results.check_target`, and
# a file of a fixed name in a directory that a user names through `results.claim`, too.
PRIMITIVES = {"storage/atomic.py", "storage/weight_files.py", "storage/torch_file.py", "storage/files.py"}
PRIMITIVES |= {"pipeline/name_lists.py"}
# the run's own directory, which `run_directory.open_directory` has checked
IN_A_RUN = {
    "training/run.py:report_bad_images",
    "training/log.py:_keep",
    "training/log.py:record",
    "training/log.py:rewind",
    "training/guard.py:_describe",
    "storage/run_state.py:write",
    "launch/run_directory.py:write_config",
    "launch/run_directory.py:open_directory",
    "launch/run_directory.py:discard",
    "training/checkpoints.py:write",
    "training/checkpoints.py:begin",
    "training/checkpoints.py:_write_description",
    "training/sharded_checkpoints.py:write_tensors",
    "training/checkpoints.py:_point",
    "training/checkpoints.py:_delete",
    "launch/run_lock.py:release",
    "methods/image_text.py:_keep_tokenizer",
    "storage/manifest.py:write",
}
# a directory or file that is made for the moment, or standard streams
TEMPORARY = {
    "launch/launcher.py:_run",
    "launch/launcher.py:note_end",
    "layers/across_ranks.py:_import_http_server",
    "tools/demo.py:main",
    "tools/doctor.py:main",
    "tools/split.py:find_groups",
    "measures/doctor/ranks.py:work",
    "measures/doctor/ranks.py:_make_photos",
    "measures/doctor/children.py:start",
    "measures/doctor/sections.py:run_section",
    "measures/doctor/sections.py:main",
    "program.py:_use_consoles",
    "program.py:_drop_unwritable_output",
    "runtime.py:end_quietly",
}
# or the index beside shards, in a folder of ours that is not a link
IN_THE_CACHE = {
    "zoo/download.py:fetch",
    "zoo/download.py:_accept",
    "zoo/resuming.py:__call__",
    "zoo/resuming.py:_transfer",
    "zoo/resuming.py:_copy",
    "pipeline/shard_index.py:write_arrays",
    "pipeline/shard_index.py:_index_folder",
    "pipeline/shard_index.py:_in_cache",
    "tools/zeroshot.py:cached_vectors",
}
# what a user names, checked by the functions above
RESULTS = {
    "port_weights/writing.py:write",
    "port_weights/writing.py:_write_files",
    "port_weights/writing.py:write_text_tower",
    "port_weights/writing.py:write_maws",
    "tools/pca.py:main",
    "tools/visualise.py:main",
    "tools/neighbours.py:main",
    "pages/html.py:write_page",
    "tools/analyse.py:write_report",
    "tools/layers.py:write_results",
    "training/report.py:_start",
    "tools/export.py:export_paddle",
    "tools/export.py:export_onnx",
    "tools/export.py:_export",
    "tools/export.py:main",
    "tools/doctor.py:report",
    "storage/results.py:new_directory",
    "pages/tables.py:write_csv",
    "measures/feature_cache.py:features_of",
    "measures/feature_cache.py:write_json",
    "measures/curation/image_facts.py:collect",
    "pages/curation_tables.py:write",
    "pages/explorer.py:write",
    "tools/split.py:main",
    "pages/evaluation.py:finish",
    "measures/extraction.py:__init__",
    "measures/extraction.py:_create",
    "measures/extraction.py:_shorten",
    "measures/extraction.py:_move",
    "tools/features.py:main",
    "tools/sweep.py:main",
    "tools/sweep.py:_write_done",
    "tools/check_dataset.py:main",
    "tools/zeroshot.py:main",
    "tools/export.py:write_labels",
    "pages/mask_files.py:__init__",
    "pages/mask_files.py:_save",
    "pages/prediction_table.py:finish",
    "pages/prediction_table.py:write",
    "pages/prediction_table.py:_write_parquet",
    "pages/prediction_table.py:_move",
    "pages/prediction_table.py:_move_file",
    "storage/results.py:claim",
    "tools/caption_dataset.py:write",
    "tools/caption_dataset.py:main",
    "tools/pack_dataset.py:pack",
    "pipeline/shard_writer.py:open_shard",
    "pipeline/shard_writer.py:write_shards",
    "tools/pack_dataset.py:_begin",
}
OWN_FOLDER = {"tools/quickstart.py:main"}  # output/quickstart, whose runs it makes again

_METHODS = {
    "write_text",
    "write_bytes",
    "mkdir",
    "unlink",
    "rename",
    "symlink_to",
    "rmdir",
    "touch",
    "replacing",
    "rmtree",
}
_FUNCTIONS = {"os.replace", "os.open", "np.savez", "np.save", "open_memmap", "paddle.jit.save", "shutil.copy"}
_FUNCTIONS |= {
    "tempfile.mkstemp",
    "tempfile.TemporaryDirectory",
    "create_array",
    "os.remove",
    "shutil.move",
    "shutil.copytree",
}


def is_writing(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name in ("open", "tarfile.open", "zipfile.ZipFile", "archive.open"):
        modes = [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode")]
        return any(not isinstance(mode, ast.Constant) or set(mode.value) & set("wax+") for mode in modes)
    if name == "os.open":
        return any(flag in ast.unparse(call) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
    return name in _FUNCTIONS or (isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS)


def writers(text: str) -> set[str]:
    found = set()

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and is_writing(node):
            found.add(function)
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(text), "")
    return found


def test_every_writer_is_known():
    found = set()
    for file in source_files():
        name = file.relative_to(ROOT).as_posix()
        if name not in PRIMITIVES and not name.startswith("benchmarks/"):
            found |= {f"{name}:{function}" for function in writers(file.read_text(encoding="utf-8"))}
    known = IN_A_RUN | TEMPORARY | IN_THE_CACHE | RESULTS | OWN_FOLDER
    assert found - known == set(), "keep to the rule at the top of this file, and add the function there"
    assert known - found <= {"tools/export.py:export_onnx", "pages/html.py:write_page"}


@pytest.mark.parametrize(
    "line", ["open(p, 'w')", "p.write_text('')", "np.savez(p)", "open(p, mode)", "os.replace(a, b)"]
)
def test_a_new_writer_would_be_found(line):
    assert writers(f"def f():\n    {line}\n") == {"f"}
    assert writers("def f():\n    open(p, 'rb')\n    open(p)\n") == set()


# ---- the rule


def test_a_report_does_not_replace_the_data_sets_own_list(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"image": "0.png", "labels": [0]}))
    (tmp_path / "notes.json").write_text(json.dumps({"images": [1, 2]}))
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    arguments = ["-dataset", "lists", "-data_path", str(tmp_path), "-json"]
    with pytest.raises(UserError, match=r"must be a .json file"):
        check_dataset.main([*arguments, str(tmp_path / "train.jsonl")])
    with pytest.raises(UserError, match="exists, and is not a report from here"):
        check_dataset.main([*arguments, str(tmp_path / "notes.json")])
    for _ in range(2):  # an own report is replaced
        assert check_dataset.main([*arguments, str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "notes.json").read_text()) == {"images": [1, 2]}


@pytest.mark.parametrize("target", ["transformers", "paddledetection", "paddleseg", "detectron2"])
def test_files_of_others_are_not_replaced(tmp_path, target):
    weights = make_weights(tmp_path, "with a last norm" if target == "transformers" else "small")
    (tmp_path / "first").mkdir()
    port(weights, tmp_path / "first", target=target, heads=(4, None))
    port(weights, tmp_path / "first", target=target, heads=(4, None))  # its own
    names = [path.name for path in (tmp_path / "first").iterdir() if path.name != results.OWN_FILES]
    assert len(names) == 2
    for name in names:
        folder = tmp_path / f"with {name}".replace(".", " ")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(UserError, match="not from here|is another one"):
            port(weights, folder, target=target, heads=(4, None))
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]


def test_a_sweep_does_not_go_into_a_run(tmp_path, tiny_yaml):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"event": "train", "step": 1}\n')
    with pytest.raises(UserError, match="is a run, which holds its own files only"):
        sweep.main(["-cfg", str(tiny_yaml("pretrain")), "-grid", "SEED=0,1", "-out", str(tmp_path / "run"), "--"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "results.html").write_text("mine")
    with pytest.raises(UserError, match=r"results.html, which is not from here"):
        sweep.main(["-cfg", str(tiny_yaml("pretrain")), "-grid", "SEED=0,1", "-out", str(tmp_path / "other"), "--"])
    assert (tmp_path / "other" / "results.html").read_text() == "mine"


def test_a_users_file_of_the_notes_name_is_not_replaced(tmp_path):
    for content in (b"my own notes\nscores.json\n", b"\xff\xfe", b""):
        (tmp_path / results.OWN_FILES).write_bytes(content)
        with pytest.raises(UserError, match="which is not from here"):
            results.claim(tmp_path, ["scores.json"])
        assert (tmp_path / results.OWN_FILES).read_bytes() == content
    (tmp_path / results.OWN_FILES).unlink()
    results.claim(tmp_path, ["a"])
    results.claim(tmp_path, ["b"])
    (tmp_path / "a").write_text("")
    results.claim(tmp_path, ["a", "b"])


def test_an_input_that_is_in_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="is an input"):
        results.check_target(tmp_path / "photo.png", "-out", [tmp_path])
    assert results.check_target(tmp_path / "new.png", "-out", [tmp_path]) == tmp_path / "new.png"
