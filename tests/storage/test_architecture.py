"""Names and shapes of the models, the large ones without memory for them."""

import math

import pytest

from config import default_type, get_config, network_kind
from errors import UserError
from mae import build_mae_pretrain
from port_weights.families import recognise
from port_weights.infer import infer
from port_weights.names import official_name
from port_weights.porting import check
from storage.architecture import Architecture, Tower, of_config
from storage.stored_tensor import StoredTensor
from storage.weight_files import WeightFile
from tests.helpers.weights_by_hand import official_decoder_shapes, official_shapes
from transformer import build_transformer

pytestmark = pytest.mark.quick

# Published: width, depth, heads, patch, patches; tensors and parameters of the encoder.
PUBLISHED = {
    "B": (768, 12, 12, 16, 196, 150, 85.80e6),
    "L": (1024, 24, 16, 16, 196, 294, 303.30e6),
    "H": (1280, 32, 16, 14, 256, 390, 630.76e6),
    "2B": (2560, 24, 32, 14, 256, 294, 1.890e9),
    "6.5B": (4096, 32, 32, 14, 256, 390, 6.448e9),
}


def explode():
    raise AssertionError("a tensor was read, although shapes were asked for")


def stored(tmp_path, shapes) -> WeightFile:
    path = tmp_path / "weights.pth"
    with open(path, "wb") as file:
        file.truncate(4 * sum(map(math.prod, shapes.values())))  # a file with a hole: it takes no space
    return WeightFile(path, "torch", {name: StoredTensor(shape, "float32", explode) for name, shape in shapes.items()})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_encoders(tmp_path, name):
    width, depth, heads, patch, num_patches, num_tensors, num_elements = PUBLISHED[name]
    shapes = official_shapes(width, depth, patch, num_patches)
    assert len(shapes) == num_tensors
    assert sum(map(math.prod, shapes.values())) == pytest.approx(num_elements, rel=1e-3)  # as rounded in the papers
    file = stored(tmp_path, shapes)
    found = recognise(file)
    tensors, architecture, _ = check(file, found, (None, None), None)
    assert architecture.encoder == Tower(width, depth, heads)
    assert (architecture.patch_px, architecture.decoder, architecture.num_classes) == (patch, None, 0)
    assert found.family == ("MAWS" if "B" in name[1:] else "timm ViT or MAWS, which share their names")
    # Every tensor is ours with its sides swapped where it is a matrix, and nothing else.
    back = {official_name(key): tensor.shape for key, tensor in tensors.items()}
    assert back == {key: shape[::-1] if len(shape) == 2 else shape for key, shape in shapes.items()}
    assert get_config(None, [word for pair in architecture.settings().items() for word in pair])


@pytest.mark.parametrize("name", ["B", "L", "H"])
def test_published_autoencoders_and_classifiers(tmp_path, name):
    width, depth, heads, patch, num_patches, num_tensors, _ = PUBLISHED[name]
    encoder = official_shapes(width, depth, patch, num_patches)
    file = stored(tmp_path, encoder | official_decoder_shapes(width, patch, num_patches))
    _, architecture, _ = check(file, recognise(file), (None, None), None)
    assert len(file.tensors) == num_tensors + 104 == {"B": 254, "L": 398, "H": 494}[name]
    assert architecture.decoder == Tower(512, 8, 16)
    classifier = official_shapes(width, depth, patch, num_patches, num_classes=1000)
    file = stored(tmp_path, classifier)
    _, architecture, _ = check(file, recognise(file), (None, None), None)
    assert architecture.encoder == Tower(width, depth, heads)
    assert (architecture.num_classes, architecture.global_pool) == (1000, False)


@pytest.mark.parametrize(
    ("mode", "opts"),
    [
        ("pretrain", []),
        ("pretrain", ["DATA.IMAGE_SIZE", [8, 24], "DATA.IMAGE_CHANNELS", 1, "MODEL.MLP_RATIO", 2.5]),
        ("finetune", ["DATA.IMAGE_CHANNELS", 4, "MODEL.QKV_BIAS", False]),
        ("finetune", ["MODEL.GLOBAL_POOL", False]),
        ("finetune", ["MODEL.NUM_CLASSES", 0]),
        ("finetune", ["MODEL.ENCODER.RELATIVE_POSITION_BIAS", True, "MODEL.ENCODER.LAYER_SCALE", 1.0]),
        ("finetune", ["MODEL.ENCODER.RELATIVE_POSITION_BIAS", "shared", "MODEL.DISTILL_HEAD", True]),
        ("finetune", ["MODEL.GLOBAL_POOL", False, "MODEL.NUM_CLASSES", 0]),
        ("linearprobe", []),
    ],
)
def test_shapes_are_those_of_the_models(tiny_config, mode, opts):
    if "DATA.IMAGE_CHANNELS" in opts:
        channels = opts[opts.index("DATA.IMAGE_CHANNELS") + 1]
        opts = [*opts, "DATA.IMAGENET_MEAN", [0.5] * channels, "DATA.IMAGENET_STD", [0.5] * channels]
    config = tiny_config(mode, *opts)
    model = (build_mae_pretrain if mode == "pretrain" else build_transformer)(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    architecture = of_config(config, network_kind(config))
    assert model.architecture == architecture
    assert architecture.shapes() == shapes
    # Shapes tell everything but the heads, a grid that is not square, and what the decoder predicts.
    decoder_heads = config.MODEL.DECODER.NUM_HEADS if mode == "pretrain" else None
    pixels = config.MODEL.NORM_PIX_LOSS if mode == "pretrain" else None
    assert infer(shapes, config.MODEL.ENCODER.NUM_HEADS, decoder_heads, architecture.grid_hw, pixels) == architecture
    assert Architecture.from_dict(architecture.to_dict()) == architecture
    # And the settings that it gives build the same model again.
    settings = architecture.settings() | {"MODEL.TYPE": default_type(architecture.network)}
    rebuilt = get_config(None, [word for pair in settings.items() for word in pair])
    assert of_config(rebuilt, network_kind(rebuilt)) == architecture


def test_sizes_that_no_shape_tells_are_asked_for():
    shapes = Architecture(Tower(16, 1, 4), patch_px=4, grid_hw=(1, 3)).shapes()
    with pytest.raises(UserError, match="no square grid"):
        infer(shapes, 4)
    del shapes["cls_token"], shapes["encoder_position_embedding"]
    with pytest.raises(UserError, match="encoder_position_embedding is missing"):
        infer(shapes, 4)
