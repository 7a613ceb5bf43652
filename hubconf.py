"""Models for other projects by paddle.hub, which looks for this file.

    import paddle
    encoder = paddle.hub.load("DIRECTORY", "mae_model", source="local", name="vit_base_patch16", family="mae")

A project may have modules called `config`, `datasets` or `tools` of its own: those of this repository are imported
aside, and do not stay in `sys.modules`.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import paddle


def _check_zlib() -> None:
    """Raise ImportError where Paddle 2.6 would crash: Python's zlib, when imported later, calls the one inside it."""
    if not paddle.__version__.startswith("2."):
        return
    order = list(sys.modules)
    if "zlib" not in order or order.index("zlib") > order.index("paddle.base.libpaddle"):
        raise ImportError("Paddle 2.6 crashes on files with zlib: put `import zlib` above `import paddle`")


_check_zlib()  # before Paddle imports the dependencies
dependencies = ["PIL", "pooch", "requests", "safetensors", "scipy", "sentencepiece", "sklearn", "yacs", "yaml"]
_ROOT = Path(__file__).resolve().parent


def mae_model(name: str, family: str = "mae", pretrained: bool = True, **options) -> paddle.nn.Layer:
    """Build a model with published weights, which are downloaded on first use; see `zoo.build_model`.

    Args:
        name: like vit_base_patch16; `python -m zoo list` names all.
        family: mae, mae_ct, mae_lite, maws, ...
        pretrained: False: drawn at random.
        options: `num_classes`, `image_size` and other arguments of `zoo.build_model`.
    """
    with _own_modules():
        from zoo import build_model

        return build_model(name, family, pretrained=pretrained, **options)


@contextlib.contextmanager
def _own_modules() -> Iterator[None]:
    """Have the names of this repository's modules mean these, and afterwards what they meant before."""
    names = {path.stem for path in _ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    theirs = _take(names)
    sys.path.insert(0, str(_ROOT))
    try:
        yield
    finally:
        sys.path.remove(str(_ROOT))
        _take(names)
        sys.modules.update(theirs)


def _take(names: set[str]) -> dict[str, ModuleType]:
    found = [name for name in sys.modules if name.partition(".")[0] in names and name != __name__]
    return {name: sys.modules.pop(name) for name in found}
