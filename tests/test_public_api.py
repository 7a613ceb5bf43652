"""The README's Python snippet, and what an import pulls in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime import ROOT
from storage import torch_file
from storage.stored_tensor import StoredTensor
from tests.helpers.weights_by_hand import official_shapes


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def run(code: str, folder: Path, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_readme_snippet_runs(tmp_path):
    snippet = snippets()[0]
    for line in (
        "from config import get_config",
        "from transformer import build_transformer as build_model",
        "paddle.load(",
        "model.set_state_dict(",
    ):
        assert line in snippet
    weights = re.search(r'paddle.load\("(.+?)"\)', snippet).group(1)
    config = re.search(r'get_config\("(.+?)"\)', snippet).group(1)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    setup = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import paddle\n"
        "from config import get_config\n"
        "from transformer import build_transformer\n"
        f"paddle.save(build_transformer(get_config({config!r})).state_dict(), {weights!r})\n"
    )
    run(setup + snippet + "\nassert logits.shape == [1, 1000]\n", tmp_path)


@pytest.mark.slow
def test_readme_snippet_of_the_zoo_runs(tmp_path):
    """A mirror has weights of the right names and shapes, but not of the published checksum."""
    snippet = snippets()[1]
    mirror = tmp_path / "dl.fbaipublicfiles.com" / "mae" / "pretrain"
    mirror.mkdir(parents=True)
    shapes = official_shapes(dim=768, depth=12, patch=16, num_patches=196)
    tensors = {name: StoredTensor.of(np.full(shape, 0.01, np.float32)) for name, shape in shapes.items()}
    torch_file.write(mirror / "mae_pretrain_vit_base.pth", tensors, "model")
    setup = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import dataclasses, paddle, zoo\n"
        "entry = zoo.find('vit_base_patch16.mae')\n"
        "zoo.table()[entry.name] = dataclasses.replace(entry, md5='')\n"
    )
    check = (
        "assert encoder(paddle.ones([1, 3, 224, 224])).shape == [1, 768]\n"
        "assert classifier(paddle.ones([1, 3, 448, 448])).shape == [1, 10]\n"
        "assert (encoder.cls_token == 0.01).all() and not (untrained.cls_token == 0.01).all()\n"
    )
    run(setup + snippet + check, tmp_path, MAE_MIRROR=tmp_path.as_uri(), MAE_CACHE=str(tmp_path / "cache"))


@pytest.mark.quick
def test_classifier_import_is_small():
    code = (
        "import sys\n"
        "from config import get_config\n"
        "assert 'paddle' not in sys.modules\n"
        "from transformer import build_transformer as build_model\n"
        f"ours = [name for name, m in sys.modules.items() if {str(ROOT)!r} in str(getattr(m, '__file__', ''))]\n"
        "loaded = {name for name in ours if 'site-packages' not in str(sys.modules[name].__file__)}\n"
        "expected = {'config', 'errors', 'layers', 'storage', 'strict_config', 'transformer'}\n"
        "expected |= {'storage.architecture', 'storage.files', 'storage.model_options', 'storage.tensor_shapes'}\n"
        "parts = ('attention', 'basic', 'channel_groups', 'cpu_kernels', 'kernels', 'patch_counts')\n"
        "parts += ('patch_embedding', 'patches', 'pos_embed', 'poolers')\n"
        "parts += ('recompute', 'relative_position')\n"
        "expected |= {f'layers.{name}' for name in parts}\n"
        "assert loaded == expected, loaded\n"
        "assert not {'paddlenlp', 'torch', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    run(code, ROOT)
