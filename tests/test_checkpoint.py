import pickle

import numpy as np
import paddle
import pytest

import checkpoint
from storage import safe_pickle, weight_files
from storage.stored_tensor import StoredTensor
from tests.conftest import assert_close
from tests.helpers.malformed_weights import safetensors_bytes, torch_bytes
from tests.helpers.small_models import VIT, equal, make_mae, make_vit
from tests.helpers.weights_by_hand import official_arrays

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("nested", [False, True])
def test_paddlevit_files_load_completely(tmp_path, nested):
    for make in (make_vit, make_mae):
        saved, model = make(seed=1), make(seed=2)
        state = saved.state_dict()
        paddle.save({"model": state, "epoch": 3} if nested else state, str(tmp_path / "w.pdparams"))
        report = checkpoint.load_weights(model, tmp_path / "w")  # the suffix may be left out
        assert not report.missing
        assert not report.unexpected
        assert equal(saved, model)
    images = paddle.rand([2, 3, 8, 8])
    assert (make_vit(seed=1)(images) == make_vit(seed=1)(images)).all()


def test_safetensors(tmp_path):
    from safetensors.numpy import save_file

    saved, model = make_vit(seed=1), make_vit(seed=2)
    save_file({name: value.numpy() for name, value in saved.state_dict().items()}, tmp_path / "w.safetensors")
    checkpoint.load_weights(model, tmp_path / "w.safetensors")
    assert equal(saved, model)
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        checkpoint.load_weights(model, tmp_path / "bad.safetensors")


def test_bfloat16_weights_load(tmp_path):
    saved, model = make_vit(seed=1), make_vit(seed=2)
    low = {name: value.astype("bfloat16") for name, value in saved.state_dict().items()}
    paddle.save(low, str(tmp_path / "w.pdparams"))
    checkpoint.load_weights(model, tmp_path / "w.pdparams")
    assert_close(model.head.weight.numpy(), saved.head.weight.numpy(), 2**-7)  # 8 bits of mantissa; Paddle 2.6 cuts


def test_differences_must_be_allowed_and_leave_the_model_alone(tmp_path):
    paddle.save(make_mae(seed=1).state_dict(), str(tmp_path / "w.pdparams"))
    model, untouched = make_vit(seed=2), make_vit(seed=2)
    with pytest.raises(ValueError, match=r"2 tensors missing from the file: classifier.weight, classifier.bias"):
        checkpoint.load_weights(model, tmp_path / "w.pdparams")
    with pytest.raises(ValueError, match="tensors not in this model: .*mask_token"):
        checkpoint.load_weights(model, tmp_path / "w.pdparams", allow_missing=["classifier.*"])
    assert equal(model, untouched)
    state = make_vit(seed=1).state_dict()
    state["classifier.weight"] = paddle.zeros([16, 7])
    paddle.save(state, str(tmp_path / "x.pdparams"))
    with pytest.raises(ValueError, match=r"classifier.weight \[16, 7\] in the file, \[16, 3\] in the model"):
        checkpoint.load_weights(model, tmp_path / "x.pdparams")
    assert equal(model, untouched)


def test_position_tables_follow_the_grid(tmp_path):
    paddle.save(make_mae().state_dict(), str(tmp_path / "w.pdparams"))
    model = make_mae(image=(12, 20))
    report = checkpoint.load_weights(model, tmp_path / "w.pdparams")
    assert report.resized == ["encoder_position_embedding 2x2 -> 3x5", "decoder_position_embedding 2x2 -> 3x5"]
    # A non-square file says its grid in the config beside it, or the caller does.
    paddle.save(model.state_dict(), str(tmp_path / "model.pdparams"))
    with pytest.raises(ValueError, match="no square grid"):
        checkpoint.load_weights(make_mae(), tmp_path / "model.pdparams")
    assert checkpoint.load_weights(make_mae(), tmp_path / "model.pdparams", source_grid_hw=(3, 5)).resized
    (tmp_path / "config.yaml").write_text("DATA:\n  IMAGE_SIZE: [12, 20]\nMODEL:\n  PATCH_SIZE: 4\n")
    assert checkpoint.load_weights(make_mae(), tmp_path).resized
    turned = checkpoint.load_weights(make_mae(image=(20, 12)), tmp_path).resized
    assert turned[0] == "encoder_position_embedding 3x5 -> 5x3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"text, not weights", "damaged or not a pickle"),
        (b"PK\x03\x04 as torch writes", "truncated or damaged torch file"),
        (b"cposix\nsystem\n(S'true'\ntR.", "asks for posix.system"),
        (pickle.dumps({"a": 1}), "holds no tensors; its entries: a"),
        (pickle.dumps([1]), "expected a state dict, found list"),
        (pickle.dumps({}), "holds no tensors"),
        (pickle.dumps({"cls_token": np.array(["x"])}), "an array of 'U1', where plain data has numbers"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    (tmp_path / "w.pdparams").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        checkpoint.load_weights(make_vit(), tmp_path / "w.pdparams")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file, with or without .pdparams"):
        checkpoint.load_weights(make_vit(), tmp_path / "none")
    with pytest.raises(ValueError, match="holds no model.pdparams"):
        checkpoint.load_weights(make_vit(), tmp_path)


def test_safe_pickle_reads_what_numpy_and_paddle_write(tmp_path):
    data = {"a": np.arange(3), "b": [np.float32(1.5)], "c": ("x", np.ones((2, 2)))}
    for protocol in (2, 4, 5):
        (tmp_path / "p").write_bytes(pickle.dumps(data, protocol=protocol))
        loaded = safe_pickle.load(tmp_path / "p")
        assert np.array_equal(loaded["a"], data["a"])
        assert loaded["b"] == [1.5]


def test_another_number_of_heads_is_refused(tmp_path):
    """Heads change no shape: without this, the weights would load and give other outputs."""
    for suffix in ("pdparams", "safetensors"):
        path = tmp_path / f"w.{suffix}"
        tensors = {name: StoredTensor.of(value.numpy()) for name, value in make_vit(seed=1).state_dict().items()}
        write = weight_files.write_pdparams if suffix == "pdparams" else weight_files.write_safetensors
        write(path, tensors, {"architecture": VIT.to_dict()})
        checkpoint.load_weights(make_vit(), path)
        other = make_vit(num_heads=4)
        with pytest.raises(
            ValueError, match="trained with 2 encoder heads, and this model has 4: set MODEL.ENCODER.NUM"
        ):
            checkpoint.load_weights(other, path)


def test_a_file_without_a_decoder_never_becomes_an_autoencoder(tmp_path):
    state = make_vit(num_classes=0).state_dict()
    paddle.save(state, str(tmp_path / "encoder.pdparams"))
    model, untouched = make_mae(seed=1), make_mae(seed=1)
    with pytest.raises(ValueError, match="mask_token.*the file holds no decoder"):
        checkpoint.load_weights(model, tmp_path / "encoder")
    assert equal(model, untouched)


def test_files_of_other_codes_are_sent_to_the_converter(tmp_path):
    (tmp_path / "w.pth").write_bytes(torch_bytes(official_arrays()))
    with pytest.raises(ValueError, match="a torch file, whose names differ; convert it: python -m port_weights"):
        checkpoint.load_weights(make_vit(), tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes(official_arrays()))
    with pytest.raises(ValueError, match="its names are of another code; convert it: python -m port_weights"):
        checkpoint.load_weights(make_vit(), tmp_path / "w")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    model = make_vit()
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    state = {name: array.copy() for name, array in before.items()}
    state["encoder.layers.0.mlp.fc1.weight"][3, 2] = value
    paddle.save(state, str(tmp_path / "bad.pdparams"))
    with pytest.raises(ValueError, match=r"bad.pdparams: encoder.layers.0.mlp.fc1.weight holds values that are not"):
        checkpoint.load_weights(model, tmp_path / "bad.pdparams")
    assert all(np.array_equal(tensor.numpy(), before[name]) for name, tensor in model.state_dict().items())
