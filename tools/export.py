"""Export a classifier, a segmenter or an encoder for deployment, run the exported model, and compare.

    python -m tools.export RUN -out DIRECTORY [-format paddle onnx] [-image_size PX] [-encoder]

Writes model.json (model.pdmodel with Paddle 2.6) and model.pdiparams for Paddle Inference, and model.onnx, which needs
`pip install -r requirements/export.txt` and Paddle 3; also labels.txt, a class per line, and, of a classifier,
inference.yml, by which PaddleClas and PaddleX prepare square RGB photos and name the classes.

Inputs are named "images": [B, C, H, W], normalised as
config.yaml beside them says; B may vary. A segmenter gives logits at the images' size, [B, K, H, W]; larger images
go through it in windows. Each is run on 1 and on 7 images, and has to agree with the model to a
relative 1e-5. The batch norm of a linear probe becomes part of its linear layer.
"""

import runtime

runtime.prepare()

import copy
import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import yaml
from paddle import nn

from arguments import Parser
from config import image_size_hw, network_kind
from errors import UserError, one_line, printable
from launch import command_line, tool_flags
from measures import image_sets
from methods import load_models
from methods.segmenter import Segmenter, upsample
from pipeline.transforms import crop_share
from storage import results
from storage.architecture import CLASSIFIERS, SEGMENTER
from transformer import VisionTransformer

TOLERANCE = 1e-5  # relative to the largest output: float32 sums in another order
_BATCHES = (1, 7)
_OPSET = 17  # first ONNX opset with layer normalisation
_NAME = "model"
LABELS_FILE, PADDLECLAS_FILE = "labels.txt", "inference.yml"
_FILES = (*(f"{_NAME}.{suffix}" for suffix in ("json", "pdmodel", "pdiparams", "onnx")), "config.yaml")
_FILES += (LABELS_FILE, PADDLECLAS_FILE)
_NUM_COPIES, _PROGRAM_BYTES = 2, 4 << 20  # copies of the weights (Paddle, ONNX); largest program


class PixelLogits(nn.Layer):
    """A segmenter whose logits are enlarged to its images' size.

    Bilinear interpolation is a product with a matrix on either side; Paddle Inference 3.3 fails on the operator itself
    where it uses oneDNN, which is the default.

    Args:
        segmenter: in evaluation mode.
        size_hw: of its images.
    """

    def __init__(self, segmenter: Segmenter, size_hw: tuple[int, int]):
        super().__init__()
        self.segmenter = segmenter
        grids = zip(("rows", "columns"), segmenter.patch_embedding.grid_hw, size_hw, strict=True)
        for name, patches, pixels in grids:
            self.register_buffer(name, upsample(paddle.eye(patches)[None, None], (pixels, patches))[0, 0])

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Return the logits of each pixel, [B, K, H, W]."""
        return paddle.matmul(paddle.matmul(self.rows, self.segmenter(images)), self.columns, transpose_y=True)


def fold_batch_norm(model: VisionTransformer) -> VisionTransformer:
    """Return a model whose head is one linear layer: the batch norm before it is a scale and a shift by now.

    Paddle Inference 3.3 crashes on a batch norm without affine parameters.
    """
    if not isinstance(model.classifier, nn.Sequential):
        return model
    folded = copy.deepcopy(model)
    norm, head = folded.classifier
    scale = 1.0 / (norm._variance + norm._epsilon).sqrt()  # [D]
    with paddle.no_grad():
        head.bias.set_value(head.bias - paddle.matmul(norm._mean * scale, head.weight))
        head.weight.set_value(head.weight * scale.unsqueeze(1))
    folded.classifier = head
    return folded


def export_paddle(model: nn.Layer, shape: tuple[int, int, int], out: Path) -> Path:
    """Save a Paddle inference model, and return the file that describes it.

    Args:
        model: in evaluation mode.
        shape: of an image, (C, H, W).
    """
    spec = paddle.static.InputSpec([None, *shape], "float32", "images")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing reads attributes that a graph's tensors lack
        paddle.jit.save(model, str(out / _NAME), input_spec=[spec])
    return next(file for file in (out / f"{_NAME}.json", out / f"{_NAME}.pdmodel") if file.is_file())


def run_paddle(program: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load a Paddle inference model; returns a function from images to outputs."""
    from paddle import inference

    config = inference.Config(str(program), str(program.with_name(f"{_NAME}.pdiparams")))
    config.disable_gpu()
    config.disable_glog_info()
    predictor = inference.create_predictor(config)

    def run(images: np.ndarray) -> np.ndarray:
        predictor.get_input_handle("images").copy_from_cpu(images)
        predictor.run()
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()

    return run


def check_onnx() -> None:
    """Raise a UserError if there is nothing to convert or to run ONNX with; it is never installed from here."""
    missing = [name for name in ("paddle2onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{', '.join(missing)} not installed; pip install -r requirements/export.txt"
        raise UserError(f"-format onnx: {what}, or export with -format paddle")
    if paddle.__version__.startswith("2."):
        raise UserError(f"-format onnx: needs Paddle 3, and this is {paddle.__version__}; export with -format paddle")


def export_onnx(program: Path) -> Path:
    """Convert a Paddle inference model to ONNX.

    Raises:
        UserError: if the converter fails.
    """
    import paddle2onnx

    target = program.with_suffix(".onnx")
    try:
        paddle2onnx.export(
            str(program),
            str(program.with_suffix(".pdiparams")),
            str(target),
            opset_version=_OPSET,
            optimize_tool="None",  # the others fold constants, as the runtime does, and may install packages
        )
    except (Exception, SystemExit) as error:  # it ends the process where it fails
        raise UserError(f"-format onnx: paddle2onnx failed ({one_line(error)})") from error
    return target


def run_onnx(file: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load an ONNX model on CPU; returns a function from images to outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


@paddle.no_grad()
def compare(model: Callable, run: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int]) -> float:
    """Return the largest difference between a model and its export, relative to the largest output.

    Raises:
        UserError: if it is above 1e-5.
    """
    rng, worst = np.random.default_rng(0), 0.0
    for batch in _BATCHES:
        images = rng.standard_normal((batch, *shape), dtype=np.float32)
        expected = model(paddle.to_tensor(images)).numpy()
        found = run(images)
        if found.shape != expected.shape:
            raise UserError(f"the exported model gives {found.shape} for {batch} images, not {expected.shape}")
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    if not worst <= TOLERANCE:
        raise UserError(f"the exported model differs by a relative {worst:.1e}; at most {TOLERANCE:.0e} was expected")
    return worst


def _check_space(model: nn.Layer, out: Path) -> None:
    """Raise UserError if the disk has no room for the model: Paddle would write half a file without an error."""
    needed = _NUM_COPIES * sum(4 * parameter.size for parameter in model.parameters()) + _PROGRAM_BYTES
    free = shutil.disk_usage(out).free
    if free < needed:
        raise UserError(f"-out {out}: the disk has {free:,} bytes left, and {needed:,} are needed")


def write_labels(config, folder: Path) -> None:
    """Write the names of the classes, and, of a classifier, how its images are prepared, as PaddleClas has it."""
    names, data = image_sets.class_names(config), config.DATA
    lines = (printable(name) for name in names)
    (folder / LABELS_FILE).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if network_kind(config) == SEGMENTER:
        return
    if config.TRAIN.MULTI_LABEL:
        print(f"{PADDLECLAS_FILE} is not written: PaddleClas's Topk is for one label per image")
        return
    height, width = image_size_hw(config)
    if height != width or data.IMAGE_CHANNELS != 3:
        print(f"{PADDLECLAS_FILE} is not written: PaddleClas's steps are for square images of 3 channels")
        return
    filters = {"interpolation": "bicubic", "backend": "pil"}
    if data.EVAL_RESIZE == "squash":
        crop = [{"ResizeImage": {"size": [width, height], **filters}}]
    else:
        crop = [{"ResizeImage": {"resize_short": int(height / crop_share(config)), **filters}}]
        crop.append({"CropImage": {"size": height}})
    normal = {"mean": list(data.IMAGENET_MEAN), "std": list(data.IMAGENET_STD), "order": "", "channel_num": 3}
    steps = [*crop, {"NormalizeImage": {"scale": 1 / 255, **normal}}, {"ToCHWImage": None}]
    topk = {"topk": min(5, len(names)), "label_list": names}
    about = {"PreProcess": {"transform_ops": steps}, "PostProcess": {"Topk": topk}}
    (folder / PADDLECLAS_FILE).write_text(yaml.safe_dump(about, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _export(model: nn.Layer, shape: tuple[int, int, int], out: Path, formats: list[str]) -> dict[str, float]:
    """Write the formats into an empty directory, and return the relative difference of each."""
    folded, reference = fold_batch_norm(model), model
    if isinstance(model, Segmenter):
        folded = PixelLogits(folded, shape[1:])
        folded.eval()

        def reference(images: paddle.Tensor) -> paddle.Tensor:
            return upsample(model(images), shape[1:])

    program, differences = export_paddle(folded, shape, out), {}
    if "paddle" in formats:
        differences["paddle"] = compare(reference, run_paddle(program), shape)
    if "onnx" in formats:
        differences["onnx"] = compare(reference, run_onnx(export_onnx(program)), shape)
    if "paddle" not in formats:
        program.unlink()
        program.with_suffix(".pdiparams").unlink()
    return differences


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Write the models, and return the relative difference of each."""
    parser = Parser(prog="python -m tools.export", description=__doc__)
    parser.add_argument("run", help="run, checkpoint directory, or weight file with its YAML beside it")
    parser.add("format", "paddle, onnx, or both (default)", nargs="+", choices=("paddle", "onnx"))
    parser.add("image_size", "pixels, instead of the run's own", metavar="PX")
    parser.add("encoder", "leave the classifier out: features [B, D]", action="store_true")
    parser.add("out", "directory for the files", required=True, metavar="DIR")
    parser.add("opts", "settings of the configuration: KEY VALUE or KEY=VALUE", nargs="+", action="extend", default=[])
    args = parser.parse_args(argv)
    formats = args.format or ["paddle", "onnx"]
    if "onnx" in formats:
        check_onnx()
    out = results.new_directory(args.out, [args.run], writes=_FILES)
    paddle.set_device("cpu")
    config = tool_flags.read_config(args)
    kind = network_kind(config)
    is_encoder = args.encoder or kind not in (*CLASSIFIERS, SEGMENTER)
    load = load_models.load_segmenter if kind == SEGMENTER else load_models.load_classifier
    model, config = (load_models.load_encoder if is_encoder else load)(args.run, config)
    shape = (config.DATA.IMAGE_CHANNELS, *image_size_hw(config))
    _check_space(model, out)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=out) as folder:  # what is wrong does not stay
        differences = _export(model, shape, Path(folder), formats)
        (Path(folder) / "config.yaml").write_text(config.dump(), encoding="utf-8")
        if not is_encoder:
            write_labels(config, Path(folder))
        results.claim(out, _FILES)
        for name in set(_FILES) - set(os.listdir(folder)):  # left by an earlier export
            (out / name).unlink(missing_ok=True)
        for file in Path(folder).iterdir():
            os.replace(file, out / file.name)
    names = ", ".join(f"{name} (differs by {value:.1e})" for name, value in differences.items())
    what = "features" if is_encoder else f"logits of {config.MODEL.NUM_CLASSES} classes"
    what += " per pixel" if not is_encoder and kind == SEGMENTER else ""
    print(f"wrote {out}: {names}; images [B, {', '.join(map(str, shape))}] to {what}")
    return differences


if __name__ == "__main__":
    command_line.run(main)
