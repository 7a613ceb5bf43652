"""Frozen teachers of distillation: an encoder or a classifier of this project, or a Paddle inference model."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle

from arguments import user_path
from config import image_size_hw
from errors import UserError, one_line
from methods.load_models import load_classifier, load_encoder
from storage import manifest, weight_files
from transformer import VisionTransformer

_PROGRAMS, _PARAMETERS = (".json", ".pdmodel"), ".pdiparams"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network that does not train, and is not part of the checkpoints.

    Attributes:
        network: from images [B, C, H, W], normalised as the student's; not registered in the student's network.
        sha256: of its weights' file; a run resumes with the same teacher only.
        description: one line for the log.
    """

    network: Callable
    sha256: str
    description: str

    @paddle.no_grad()
    def logits(self, images: paddle.Tensor) -> paddle.Tensor:
        """Classify images; returns [B, K]. An inference model may put out more, of which the first is taken."""
        outputs = self.network(images)
        return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def open_encoder(path: str, config) -> Teacher:
    """Load an encoder that sees the same patches of the same images as a student.

    Args:
        config: the student's.

    Raises:
        UserError: if its images or patches are others, or the file holds no encoder.
    """
    weights = _resolve(path)
    encoder, own = load_encoder(weights)
    for key, theirs, ours in (
        ("MODEL.PATCH_SIZE", own.MODEL.PATCH_SIZE, config.MODEL.PATCH_SIZE),
        ("DATA.IMAGE_SIZE", image_size_hw(own), image_size_hw(config)),
    ):
        if theirs != ours:
            raise UserError(
                f"-teacher {path}: has {key} {theirs}, and the student {ours}; they must see the same patches"
            )
    if own.MODEL.ENCODER.RELATIVE_POSITION_BIAS:
        raise UserError(f"-teacher {path}: has relative position biases, which need all patches; the student sees some")
    _check_images(path, own, config)
    tower = own.MODEL.ENCODER
    words = f"teacher {weights}: encoder {tower.EMBED_DIM} wide, {tower.DEPTH} deep, {tower.NUM_HEADS} heads; frozen"
    return Teacher(_frozen(encoder), _sha256(weights), words)


def open_classifier(path: str, config) -> Teacher:
    """Load a classifier of this project, or a Paddle inference model, for a student's images and classes.

    Args:
        path: a run, a checkpoint, a weight file with its YAML; or a program (.json, .pdmodel) beside .pdiparams.
        config: the student's.

    Raises:
        UserError: if it cannot be read, or its images or classes are others.
    """
    program = _find_program(user_path(path, "-teacher"))
    if program is not None:
        network, weights = _load_program(program, path), program.with_suffix(_PARAMETERS)
        words = f"teacher {program}: a Paddle inference model; frozen"
    else:
        weights = _resolve(path)
        network, own = load_classifier(weights)
        if image_size_hw(own) != image_size_hw(config):
            raise UserError(
                f"-teacher {path}: has DATA.IMAGE_SIZE {image_size_hw(own)}, and the student {image_size_hw(config)}"
            )
        _check_images(path, own, config)
        _frozen(network)
        words = f"teacher {weights}: {own.MODEL.NAME}, {own.MODEL.NUM_CLASSES} classes; frozen"
    teacher = Teacher(network, _sha256(weights), words)
    _check_classes(teacher, path, config)
    return teacher


def _resolve(path: str) -> Path:
    """Return the weights' file of a path; an error names the flag."""
    if not path:
        raise UserError("-teacher: is empty; name a run or weights")
    try:
        return weight_files.resolve(user_path(path, "-teacher"))
    except UserError as error:
        raise UserError(f"-teacher {path}: {error}") from error


def _frozen(network: VisionTransformer) -> VisionTransformer:
    for parameter in network.parameters():
        parameter.stop_gradient = True
    network.eval()
    return network


def _sha256(weights: Path) -> str:
    return manifest.digests(weights, "sha256")["sha256"]


def _check_images(path: str, theirs, config) -> None:
    """Raise UserError unless both networks were made for images of the same channels and normalisation."""
    for key in ("IMAGE_CHANNELS", "IMAGENET_MEAN", "IMAGENET_STD"):
        if theirs.DATA[key] != config.DATA[key]:
            raise UserError(
                f"-teacher {path}: has DATA.{key} {theirs.DATA[key]}, and the student {config.DATA[key]}; both get the "
                "same images, so they must be equal"
            )


def _find_program(path: Path) -> Path | None:
    """Return the program of an inference model, given it, its parameters, their common name, or their directory."""
    if path.is_dir():  # a directory that tools.export wrote
        found = [path / f"model{suffix}" for suffix in _PROGRAMS]
    elif path.suffix in (*_PROGRAMS, _PARAMETERS):
        found = [path.with_suffix(suffix) for suffix in _PROGRAMS]
    else:
        found = [Path(f"{path}{suffix}") for suffix in _PROGRAMS]
    return next((program for program in found if program.is_file()), None)


def _load_program(program: Path, path: str) -> Callable:
    if not program.with_suffix(_PARAMETERS).is_file():
        raise UserError(f"-teacher {path}: {program.with_suffix(_PARAMETERS)} is missing")
    try:
        network = paddle.jit.load(str(program.with_suffix("")))
    except Exception as error:  # Paddle raises errors of many kinds here
        raise UserError(f"-teacher {path}: Paddle cannot load it: {one_line(error)}") from error
    network.eval()
    return network


def _check_classes(teacher: Teacher, path: str, config) -> None:
    """Try the teacher on two images, and compare the number of its classes with the student's."""
    images = paddle.zeros([2, config.DATA.IMAGE_CHANNELS, *image_size_hw(config)])
    try:
        outputs = teacher.logits(images)
    except Exception as error:  # an inference model may want other sizes
        raise UserError(f"-teacher {path}: fails on images {list(images.shape)}: {one_line(error)}") from error
    wanted = [2, config.MODEL.NUM_CLASSES]
    if list(outputs.shape) != wanted:
        raise UserError(f"-teacher {path}: gives {list(outputs.shape)} for two images, and {wanted} is needed")
    if not np.isfinite(outputs.numpy()).all():
        raise UserError(f"-teacher {path}: its outputs are not finite numbers")
