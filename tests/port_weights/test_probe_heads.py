"""Published heads of efficient probing on an encoder, against torch."""

import json
import pickle

import numpy as np
import paddle
import pytest
from numpy.testing import assert_allclose

from errors import UserError
from methods import dispatch, load_models
from pipeline import scenes
from port_weights.__main__ import main
from port_weights.porting import port
from storage import weight_files
from tests.helpers.malformed_weights import torch_bytes
from tests.helpers.weights_by_hand import official_arrays, official_decoder_shapes
from tests.methods.test_segmentation import SEG

pytestmark = pytest.mark.quick
RNG = np.random.default_rng(0)


def head_arrays(width=32, queries=4, d_out=1, classes=5):
    out = width // d_out
    shapes = {"0.cls_token": (1, queries, width), "0.v.weight": (out, width), "1.running_mean": (out,)}
    shapes |= {"1.running_var": (out,), "2.weight": (classes, out), "2.bias": (classes,)}
    arrays = {name: RNG.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["1.running_var"] = np.abs(arrays["1.running_var"]) + 0.1
    return arrays | {"1.num_batches_tracked": np.array(7, np.int64)}


@pytest.fixture
def files(tmp_path):
    """Return a function: where the file of an encoder, or an autoencoder, and that of a head are."""

    def make(variant=None, has_decoder=False, **sizes):
        arrays = official_arrays(dim=32, num_patches=16, num_classes=0 if has_decoder else 7)
        if has_decoder:
            shapes = official_decoder_shapes(32, 4, 16)
            arrays |= {name: RNG.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
        (tmp_path / "encoder.pth").write_bytes(torch_bytes(arrays))
        (tmp_path / "ep_head.pth").write_bytes(torch_bytes(head_arrays(**sizes)))
        if variant is not None:
            (tmp_path / "config.json").write_text(json.dumps({"cls_features": variant, "ep_queries": 4}))
        return tmp_path / "encoder.pth", tmp_path / "ep_head.pth"

    return make


@pytest.mark.parametrize(("variant", "d_out"), [(None, 1), ("ep", 2), ("ep_all", 1)])
def test_logits_are_those_of_the_head_in_torch(files, tmp_path, capsys, variant, d_out):
    torch = pytest.importorskip("torch")
    encoder, head = files(variant, d_out=d_out)
    result = tmp_path / "probe.pdparams"
    assert main([str(encoder), str(result), "-heads", "4", "-head", str(head)]) == 0
    said = capsys.readouterr().out
    assert "attentive probe: 5 classes" in said
    assert ("taken as the patches" in said) == (variant is None)
    model, config = load_models.load_classifier(result)
    assert config.MODEL.TYPE == "ATTENTIVE_PROBE"
    images = paddle.to_tensor(RNG.normal(0, 1, (3, 3, 16, 16)).astype(np.float32))
    tokens = torch.from_numpy(model.forward_tokens(images).numpy())[:, 0 if variant == "ep_all" else 1 :]
    arrays = {name: torch.from_numpy(tensor.read()) for name, tensor in weight_files.read(head).tensors.items()}
    attention = (arrays["0.cls_token"] @ tokens.transpose(1, 2) / 32**0.5).softmax(dim=-1)  # [B, Q, N]
    values = (tokens @ arrays["0.v.weight"].T).reshape(3, tokens.shape[1], 4, -1)
    pooled = torch.einsum("bqn,bnqs->bqs", attention, values).reshape(3, -1)
    moments = arrays["1.running_mean"], arrays["1.running_var"]
    normed = torch.nn.functional.batch_norm(pooled, *moments, training=False, eps=1e-6)
    expected = normed @ arrays["2.weight"].T + arrays["2.bias"]
    assert_allclose(model(images).numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
    plain, _ = load_models.load_encoder(result)
    assert plain.forward_tokens(images).shape == [3, 17, 32]


def test_what_is_not_read_is_named(files, tmp_path):
    encoder, head = files("ep", has_decoder=True)
    assert {"encoder.norm.weight", "mask_token"} <= set(
        port(encoder, tmp_path / "probe.pdparams", heads=(4, None), head=head).dropped
    )
    encoder, head = files("ep")
    report = port(encoder, tmp_path / "probe.pdparams", heads=(4, None), head=head)
    assert set(report.dropped) == {"encoder.norm.weight", "encoder.norm.bias", "classifier.weight", "classifier.bias"}
    origin = weight_files.read(tmp_path / "probe.pdparams").metadata["ported_from"]
    assert origin["head"]["file"] == "ep_head.pth"
    assert len(origin["head"]["sha256"]) == 64


@pytest.mark.parametrize(
    ("sizes", "variant", "said"),
    [
        ({"width": 16}, "ep", "does not fit the encoder"),
        ({"queries": 5}, "ep", "are not the shapes of queries"),
        ({}, "ep_cls", "cls_features is 'ep_cls'"),
    ],
)
def test_heads_that_do_not_fit(files, tmp_path, sizes, variant, said):
    encoder, head = files(variant, **sizes)
    with pytest.raises(UserError, match=said):
        port(encoder, tmp_path / "probe.pdparams", heads=(4, None), head=head)
    assert not (tmp_path / "probe.pdparams").exists()


def test_other_files_are_not_taken_for_heads(files, tmp_path, capsys):
    encoder, head = files("ep")
    with pytest.raises(UserError, match="not a head of efficient probing"):
        port(encoder, tmp_path / "probe.pdparams", heads=(4, None), head=encoder)
    with pytest.raises(UserError, match="leave -to out"):
        port(encoder, tmp_path / "probe.pth", target="official", heads=(4, None), head=head)
    damaged = head_arrays()
    damaged["2.bias"][0] = np.nan
    head.write_bytes(torch_bytes(damaged))
    with pytest.raises(UserError, match=r"classifier.1.bias|2\.bias holds values that are not finite"):
        port(encoder, tmp_path / "probe.pdparams", heads=(4, None), head=head)
    head.write_bytes(pickle.dumps({"0.cls_token": 1}))
    assert main([str(encoder), str(tmp_path / "probe.pdparams"), "-heads", "4", "-head", str(head)]) == 1
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ep", "aim", "segmenter"])
def test_own_files_are_read_again_and_go_nowhere_else(tiny_run, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 8, "val": 2})
    options = ["PROBE.POOLER", kind, "PROBE.QUERIES", 8, "PROBE.HEADS", 4, "MODEL.TYPE", "ATTENTIVE_PROBE"]
    options = [*SEG, "SEG.LAYERS", [1, 2]] if kind == "segmenter" else [*options, "MODEL.GLOBAL_POOL", False]
    mode = "pretrain" if kind == "segmenter" else "linearprobe"
    run = tiny_run(mode, *options, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    first, second = tmp_path / "first.pdparams", tmp_path / "second.pdparams"
    assert not port(run.directory, first).dropped
    assert not port(first, second).dropped
    load = load_models.load_segmenter if kind == "segmenter" else load_models.load_classifier
    images = paddle.to_tensor(RNG.normal(0, 1, (2, 3, 16, 16)).astype(np.float32))
    expected = load(run.directory)[0](images)
    for file in (first, second):
        assert np.array_equal(load(file)[0](images).numpy(), expected.numpy())
    with pytest.raises(UserError, match="-to official: has no place for the head of this"):
        port(run.directory, tmp_path / "x.pth", target="official")
