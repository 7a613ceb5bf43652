"""Models by paddle.hub, in a project that has modules of the same names."""

import subprocess
import sys

import paddle
import pytest

from runtime import ROOT

pytestmark = pytest.mark.quick

SCRIPT = """
import sys
import config, datasets, tools.export, zlib  # zlib: for Paddle 2.6
import paddle
for _ in "twice":
    paddle.seed(0)
    model = paddle.hub.load({root!r}, "mae_model", source="local", name="vit_tiny_patch16", family="mae_lite",
                            pretrained=False)
paddle.seed(1)
images = paddle.randn([2, 3, *model.architecture.image_hw])
print("loss", float(model(images)[0]))
assert config.OWN == datasets.OWN == tools.export.OWN == "theirs"
import config as again
assert again.OWN == "theirs" and "transformer" not in sys.modules and {root!r} not in sys.path
print(paddle.hub.list({root!r}, source="local"))
"""


@pytest.mark.skipif(not paddle.__version__.startswith("2."), reason="Paddle 3 does not crash")
def test_paddle_2_needs_zlib_first(tmp_path):
    script = f"import paddle\npaddle.hub.load({str(ROOT)!r}, 'mae_model', source='local', name='vit_tiny_patch16')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "put `import zlib` above `import paddle`" in done.stderr


def test_modules_of_the_caller_stay(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("config.py", "datasets.py", "tools/__init__.py", "tools/export.py", "errors.py"):
        (tmp_path / name).write_text("OWN = 'theirs'\n")
    (tmp_path / "main.py").write_text(SCRIPT.format(root=str(ROOT)))
    done = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loss" in done.stdout
    assert "mae_model" in done.stdout
