"""SatMAE's files with groups of channels: tables joined, heads reordered, groups found."""

import numpy as np
import paddle
import pytest

import checkpoint
from errors import UserError
from mae import MAEPretrain
from port_weights import names
from port_weights.porting import port
from storage import torch_file
from storage.architecture import Architecture, Tower
from storage.stored_tensor import StoredTensor
from tests.conftest import assert_close

pytestmark = pytest.mark.quick


def model_of(groups, seed=0):
    paddle.seed(seed)
    channels = sum(map(len, groups))
    tower, decoder = Tower(48, 2, 4), Tower(32, 1, 4)
    model = MAEPretrain(Architecture(tower, 4, (3, 3), channels, decoder=decoder, channel_groups=groups))
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    model.eval()
    return model


def official(model) -> dict[str, np.ndarray]:
    """Return the tensors under SatMAE's names, as its code keeps them."""
    groups, tensors = model.architecture.channel_groups, {}
    grid, code = 9, {"encoder": 16, "decoder": 8}
    for name, value in model.state_dict().items():
        array = value.numpy()
        part = name.partition("_position_embedding")[0]
        if part in code and name.endswith("_position_embedding"):
            stem, rows = {"encoder": "", "decoder": "decoder_"}[part], array[0]
            tensors[f"{stem}pos_embed"] = rows[None, : 1 + grid, : -code[part]]
            codes = rows[1::grid, -code[part] :]
            tensors[f"{stem}channel_embed"] = (codes if stem == "" else np.concatenate([codes, rows[:1, -8:]]))[None]
        elif name.startswith("patch_embedding.groups."):
            _, _, number, kind = name.split(".")
            tensors[f"patch_embed.{number}.proj.{kind}"] = array
        elif name.startswith("decoder_pred."):
            size = len(groups[int(name.split(".")[1])])
            pixels = array.reshape(*array.shape[:-1], 16, size)  # (pixel, channel)
            pixels = pixels.swapaxes(-1, -2).reshape(array.shape)
            tensors[name] = pixels.T if array.ndim == 2 else pixels
        else:
            tensors[names.official_name(name)] = array.T if array.ndim == 2 else array
    return tensors


def write(folder, tensors):
    stored = {name: StoredTensor.of(np.ascontiguousarray(array)) for name, array in tensors.items()}
    torch_file.write(folder / "satmae.pth", stored, "model")
    return folder / "satmae.pth"


@pytest.mark.parametrize("groups", [((0, 1), (2, 3, 4)), ((0,), (1,), (2,), (3,))])
def test_a_file_gives_the_same_model(tmp_path, groups):
    model = model_of(groups)
    report = port(write(tmp_path, official(model)), tmp_path / "w.pdparams", heads=(4, 4))
    assert report.family == "SatMAE"
    assert report.architecture.channel_groups == groups
    assert any("taken as [[0" in note for note in report.notes)
    other = model_of(groups, seed=1)
    checkpoint.load_weights(other, tmp_path / "w.pdparams")
    for name, value in model.state_dict().items():
        assert np.array_equal(other.state_dict()[name].numpy(), value.numpy()), name
    images = paddle.rand([2, model.architecture.channels, 12, 12])
    noise = paddle.rand([2, 9 * len(groups)])
    assert_close(other(images, noise=noise)[0].numpy(), model(images, noise=noise)[0].numpy(), 1e-6)
    again = port(tmp_path / "w.pdparams", tmp_path / "again.pdparams")
    assert again.architecture == report.architecture
    with pytest.raises(UserError, match="-to timm: has no place for patches of groups"):
        port(tmp_path / "w.pdparams", tmp_path / "w.pth", target="timm")


def test_the_published_groups_are_known_and_their_decoder_left_out(tmp_path):
    groups = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
    model = model_of(groups)
    report = port(write(tmp_path, official(model)), tmp_path / "w.pdparams", heads=(4, None))
    assert report.architecture.channel_groups == groups
    assert report.architecture.decoder is None
    reasons = {name: reason for name, reason in report.dropped.items() if name.startswith("decoder")}
    assert {"decoder_pred.0.weight", "decoder_pos_embed", "decoder_channel_embed"} <= set(reasons)
    assert all("predict other bands" in reason for reason in reasons.values())
    assert "mask_token" in report.dropped
    yaml = (tmp_path / "w.yaml").read_text()
    assert "CHANNEL_GROUPS" in yaml
    assert "IMAGE_CHANNELS: 10" in yaml


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("channel_embed"), "channel_embed does not have a row for each of 2 groups"),
        (lambda tensors: tensors.pop("pos_embed"), "1 tensors have no place: channel_embed"),
        (lambda tensors: tensors.pop("patch_embed.1.proj.bias"), "patch_embedding.groups.1.bias is missing"),
        (lambda tensors: tensors.update({"decoder_pred.0.bias": np.zeros(7, np.float32)}), "decoder_pred.0.bias is"),
        (lambda tensors: tensors.update({"patch_embed.0.proj.weight": np.zeros((2, 2), np.float32)}), "of the shapes"),
        (lambda tensors: tensors.update({"surprise": np.zeros(2, np.float32)}), "1 tensors have no place: surprise"),
        (lambda tensors: tensors.update({"decoder_pred.9.bias": np.zeros(2, np.float32)}), "decoder_pred.9.bias"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, said):
    tensors = official(model_of(((0, 1), (2, 3, 4))))
    change(tensors)
    with pytest.raises(UserError, match=said):
        port(write(tmp_path, tensors), tmp_path / "w.pdparams", heads=(4, 4))
    assert not (tmp_path / "w.pdparams").exists()
