"""The README's Python snippet, and what an import pulls in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def snippet() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return code


def test_readme_snippet_runs(snippet, tmp_path):
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
    done = subprocess.run(
        [sys.executable, "-c", setup + snippet + "\nassert logits.shape == [1, 1000]\n"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.quick
def test_classifier_import_is_small():
    code = (
        "import sys\n"
        "from config import get_config\n"
        "assert 'paddle' not in sys.modules\n"
        "from transformer import build_transformer as build_model\n"
        f"ours = {{path.stem for path in __import__('pathlib').Path({str(ROOT)!r}).glob('*.py')}}\n"
        "assert ours & set(sys.modules) == {'config', 'errors', 'transformer', 'pos_embed'}, ours & set(sys.modules)\n"
        "assert not {'paddlenlp', 'torch', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
