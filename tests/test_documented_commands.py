"""Every command of the tools that the README and docs/ show runs, at micro size, in the directory that they assume."""

import ast
import importlib
import inspect
import re
import shlex
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image

import zoo
from config import get_config
from measures import robustness
from methods import dispatch
from runtime import ROOT
from tools import export
from training.log import RunLog
from training.run import Run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Those that serve a page, or that a test of their own runs on the files that they are about.
ELSEWHERE = {
    "demo": "tools/test_demo.py",
    "doctor": "measures/test_doctor.py",
    "channel_statistics": "tools/test_channel_statistics.py",
    "check_dataset": "test_datasets.py",
    "pack_dataset": "tools/test_pack_dataset.py",
    "split": "tools/test_curate.py",
    "sweep": "tools/test_sweep.py",
    **dict.fromkeys(("caption_dataset", "zeroshot"), "tools/test_zeroshot.py"),
}


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            found += [line.partition("  #")[0].strip() for line in block.splitlines() if "python -m tools." in line]
    return list(dict.fromkeys(found))


def names() -> list[str]:
    return [re.search(r"tools\.(\w+)", command)[1] for command in commands()]


@pytest.fixture(scope="module")
def directory(tmp_path_factory, image_folder):
    """Return a directory with micro runs and photos under the names that the pages use."""
    from tests.conftest import MODES, TINY
    from tests.methods.test_segmentation import SEG

    root = tmp_path_factory.mktemp("user")
    (root / "configs").symlink_to(ROOT / "configs")
    common = [*TINY, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64, "DATA.DATASET", "digits", "DATA.IMAGE_CHANNELS", 1]
    common += ["DATA.IMAGENET_MEAN", [0.3], "DATA.IMAGENET_STD", [0.4], "MODEL.NUM_CLASSES", 10]
    three = ["DATA.IMAGE_CHANNELS", 3, "DATA.IMAGENET_MEAN", [0.3] * 3, "DATA.IMAGENET_STD", [0.4] * 3]
    imagenet = [*three, "DATA.DATASET", "synthetic", "MODEL.NUM_CLASSES", 1000]
    runs = [("quickstart/pretrain", "pretrain", []), ("quickstart/finetune", "finetune", [])]
    runs += [("quickstart/probe", "linearprobe", []), ("imagenet", "finetune", imagenet)]
    size = ["DATA.IMAGE_SIZE", 12]  # as in the quickstart's recipes
    runs += [("quickstart/digits", "finetune", size), ("quickstart/digits-pretrain", "pretrain", size)]
    for name, mode, more in runs:
        folder = root / "output" / name
        folder.mkdir(parents=True)
        config = get_config(None, [*common, *MODES[mode], "TRAIN.WARMUP_EPOCHS", 0, "MODEL.GLOBAL_POOL", False, *more])
        (folder / "config.yaml").write_text(config.dump())
        dispatch.train_or_evaluate(Run(config, folder, RunLog(folder, quiet=True)))
    folder = root / "output" / "segmentation"
    folder.mkdir()
    config = get_config(None, [*SEG, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0])
    (folder / "config.yaml").write_text(config.dump())
    dispatch.train_or_evaluate(Run(config, folder, RunLog(folder, quiet=True)))
    (root / "output" / "contrastive-minimal-tuning").symlink_to(root / "output" / "quickstart" / "pretrain")
    (root / "output" / "labels").symlink_to(root / "output" / "quickstart" / "finetune")
    for name in ("photos", "new_photos"):
        (root / name).symlink_to(image_folder / "val")
    Image.open(next((image_folder / "val" / "cat").iterdir())).save(root / "photo.jpg")
    wnids = [wnid for wnid, _ in robustness.imagenet_classes()]
    for folder in [
        Path("imagenet-a"),
        *(Path("imagenet-c") / c / s for c in robustness.ALEXNET_ERRORS for s in "12345"),
    ]:
        for label in (3, 7):
            path = root / folder / wnids[label] / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((16, 16, 3), 30 * label, np.uint8)).save(path)
    return root


@pytest.mark.parametrize("command", [c for c, name in zip(commands(), names(), strict=True) if name not in ELSEWHERE])
def test_documented_command_runs(directory, monkeypatch, command):
    if "plain.pdparams" in command:
        pytest.skip("weights of others; test_port_weights.py draws with ported ones")
    if "exported" in command and "paddle" not in command.split("-format")[-1].split():
        pytest.importorskip("paddle2onnx")
        if not paddle.__version__.startswith("3"):
            pytest.skip("paddle2onnx 2 reads models of Paddle 3")
    monkeypatch.chdir(directory)
    _, _, module, *arguments = shlex.split(command)
    importlib.import_module(module).main(arguments)


def python_blocks() -> list[tuple[str, str]]:
    blocks = [
        (page.name, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    ]
    assert len(blocks) >= 5
    return blocks


@pytest.mark.parametrize(("page", "code"), python_blocks())
def test_documented_python_runs(directory, monkeypatch, page, code):
    """What downloads weights is held against the list of published ones, and against the function's parameters."""
    monkeypatch.chdir(directory)
    if "zoo" in code:
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        builds = [call for call in calls if ast.unparse(call.func) == "build_model"]
        assert builds
        for call in builds:
            words = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
            bound = inspect.signature(zoo.build_model).bind(*map(ast.literal_eval, call.args), **words)
            assert zoo.find(*bound.args[:2]).num_parameters > 0
        return
    if "onnxruntime" in code:
        pytest.importorskip("paddle2onnx")
        export.main(["output/quickstart/digits", "-out", "exported", "-format", "onnx"])
    if "mae_finetuned_vit_base.pdparams" in code:
        pytest.skip("test_public_api.py runs it")
    code = code.replace("output/quickstart/pretrain", "output/quickstart/digits-pretrain")
    code = code.replace("/path/to/this/repository", str(ROOT))
    code = re.sub(r'family="mae"\s*\)', 'family="mae", pretrained=False)', code)  # nothing is downloaded
    exec(compile(code, page, "exec"), {})


def test_python_files_that_pages_name_exist():
    others = {"tools/train.py", "tools/lazyconfig_train_net.py", "mask_rcnn_vitdet.py"}  # files of other libraries
    others |= {"methods/NAME.py", "tests/methods/test_NAME.py", "projects/ViTDet/configs/COCO/mask_rcnn_vitdet.py"}
    names = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.as_posix()}
    for page in PAGES:
        for name in set(re.findall(r"(?<![\w/*])\w[\w/]*\.py\b", page.read_text())) - others:
            assert (ROOT / name).is_file() if "/" in name else name in names, f"{page.name}: {name}"


def test_every_tool_is_documented_and_run_somewhere():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text()}
    text = "".join(page.read_text() for page in PAGES)
    assert {tool for tool in tools if f"python -m tools.{tool} " in text} == tools - {"quickstart"}
    assert set(names()) | set(ELSEWHERE) == tools - {"quickstart"}
    assert all((ROOT / "tests" / test).is_file() for test in ELSEWHERE.values())


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
