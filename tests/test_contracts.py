"""What programs of users call by name: argument order, defaults and results stay as they are."""

import inspect
import itertools

import numpy as np
import paddle
import pytest
from PIL import Image

import optim
from config import get_config
from errors import UserError
from mae import build_mae_pretrain
from methods.segmentation import confusion_matrix, scores
from pipeline.array_files import decode
from pipeline.masks import read_mask

pytestmark = pytest.mark.quick
QUINTIC = [
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]  # fmt: skip
ORIGINAL = [(3.4445, -4.7750, 2.0315)] * 5


def muon_step(weight, velocity, gradient, lr, decay, nesterov, triples, scale):
    """Return weight and velocity after an update in float64, of a matrix [in, out]."""
    velocity = 0.95 * velocity + 0.05 * gradient
    ahead = 0.95 * velocity + 0.05 * gradient if nesterov else velocity
    matrix = ahead / (np.linalg.norm(ahead) + 1e-7)
    for a, b, c in triples:
        gram = matrix @ matrix.T
        matrix = a * matrix + (b * gram + c * gram @ gram) @ matrix
    inputs, outputs = weight.shape
    factor = 0.2 * max(inputs, outputs) ** 0.5 if scale == "match_rms_adamw" else max(1, outputs / inputs) ** 0.5
    return weight * (1 - lr * decay) - lr * factor * matrix, velocity


@pytest.mark.parametrize(
    ("nesterov", "coefficients", "scale"),
    itertools.product([True, False], ["quintic", "original"], ["match_rms_adamw", "original"]),
)
def test_muon_agrees_with_numpy_in_all_its_choices(nesterov, coefficients, scale):
    rng = np.random.default_rng(0)
    first = rng.normal(size=(6, 10))
    layer = paddle.create_parameter([6, 10], "float32")
    layer.set_value(first.astype(np.float32))
    muon = optim.Muon(
        0.02, [layer], weight_decay=0.1, nesterov=nesterov, coefficients=coefficients, scale=scale
    )  # no group
    expected, velocity = first, np.zeros_like(first)
    for _ in range(3):
        gradient = rng.normal(size=first.shape)
        (layer * paddle.to_tensor(gradient, "float32")).sum().backward()
        muon.step()
        muon.clear_grad()
        triples = QUINTIC if coefficients == "quintic" else ORIGINAL
        expected, velocity = muon_step(expected, velocity, gradient, 0.02, 0.1, nesterov, triples, scale)
    np.testing.assert_allclose(layer.numpy(), expected, atol=1e-5)  # float32 against float64


def test_muon_has_timms_defaults_and_names_what_it_does_not_know():
    defaults = {name: value.default for name, value in inspect.signature(optim.Muon).parameters.items()}
    expected = {"weight_decay": 0.0, "momentum": 0.95, "nesterov": True, "ns_steps": 5, "coefficients": "quintic"}
    expected |= {"scale": "match_rms_adamw", "dtype": "float32"}
    assert {name: defaults[name] for name in expected} == expected
    matrix = paddle.create_parameter([2, 2], "float32")
    with pytest.raises(UserError, match="known are original, quintic, match_rms_adamw"):
        optim.Muon(0.1, [matrix], scale="none")
    with pytest.raises(UserError, match="give such parameters to AdamW"):
        optim.Muon(0.1, [paddle.create_parameter([2], "float32")])


@pytest.mark.parametrize(("kind", "ratio"), [("self", None), ("self", 0.25), ("cross", 0.25), ("cross", 0.75)])
def test_mae_says_which_patches_it_predicted(kind, ratio):
    size = ["DATA.IMAGE_SIZE", 16, "MODEL.PATCH_SIZE", 4, "MODEL.ENCODER.EMBED_DIM", 16, "MODEL.ENCODER.DEPTH", 1]
    size += ["MODEL.ENCODER.NUM_HEADS", 2, "MODEL.DECODER.EMBED_DIM", 16, "MODEL.DECODER.DEPTH", 1]
    size += ["MODEL.DECODER.NUM_HEADS", 2, "MODEL.DECODER.KIND", kind, "MODEL.PREDICT_RATIO", ratio]
    model = build_mae_pretrain(get_config(None, ["MODEL.TYPE", "PRETRAIN", *size]))
    noise = paddle.rand([2, 16])
    _, pred, mask = model(paddle.rand([2, 3, 16, 16]), noise=noise)
    predicted = model.predicted.numpy()
    highest = np.argsort(np.argsort(noise.numpy())) >= 16 - round(16 * (ratio or 0.75))
    assert predicted.dtype == bool
    assert np.array_equal(predicted, highest)
    assert not (predicted & (mask.numpy() == 0)).any()
    if kind == "cross" or ratio == 0.25:
        assert np.array_equal(np.abs(pred.numpy()).sum(-1) > 0, predicted)
    assert not {name for name in model.state_dict() if "predicted" in name}


def test_confusion_matrix_and_scores():
    truth = np.array([[0, 0, 1], [1, 255, 3]])
    pred = np.array([[0, 1, 1], [1, 0, 0]])
    matrix = confusion_matrix(pred, truth, 4)
    expected = np.zeros((4, 4), np.int64)
    expected[0, 0], expected[0, 1], expected[1, 1], expected[3, 0] = 1, 1, 2, 1
    assert matrix.dtype == np.int64
    assert np.array_equal(matrix, expected)
    found = scores(matrix)
    np.testing.assert_allclose(found["iou"], [100 / 3, 200 / 3, np.nan, 0])
    np.testing.assert_allclose([found["miou"], found["macc"], found["aacc"]], [100 / 3, 50, 60])
    assert confusion_matrix(pred, np.where(truth == 255, 7, truth), 4, ignore=7).sum() == 5
    with pytest.raises(ValueError, match="the prediction holds 0 to 9"):
        confusion_matrix(pred * 9, truth, 4)


def test_bad_input_of_scores_is_named():
    assert confusion_matrix([0, 1], [0, 1], 2).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="classes are integers, not float64"):
        confusion_matrix([0.5], [0], 2)
    with pytest.raises(ValueError, match="a confusion is"):
        scores(np.ones((2, 4)))


def test_read_mask(tmp_path):
    values = np.array([[0, 1], [255, 7]], np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    assert np.array_equal(read_mask(tmp_path / "grey.png"), values)
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    labels = np.array([[0, 1], [2, 1]])
    Image.fromarray(np.array(colours, np.uint8)[labels]).save(tmp_path / "colours.png")
    assert np.array_equal(read_mask(str(tmp_path / "colours.png"), colours), labels)
    with pytest.raises(ValueError, match="colours.png: holds colours"):
        read_mask(tmp_path / "colours.png")
    with pytest.raises(ValueError, match="colours.png: holds 1 colours that stand for no class"):
        read_mask(tmp_path / "colours.png", colours[:2])
    with pytest.raises(ValueError, match="none.png"):
        read_mask(tmp_path / "none.png")
    with pytest.raises(ValueError, match="different .red, green, blue."):
        read_mask(tmp_path / "colours.png", [(0, 0, 0), (0, 0, 0)])


def test_decode_takes_bytes_and_a_suffix(tmp_path):
    array = np.arange(24, dtype=np.uint16).reshape(4, 3, 2)
    np.save(tmp_path / "a.npy", array)
    found = decode((tmp_path / "a.npy").read_bytes(), ".npy")
    assert found.dtype == np.uint16
    assert np.array_equal(found, array)
