"""Weights of other libraries, against their own classes; needs requirements/libraries.txt."""

import numpy as np
import paddle
import pytest

from errors import UserError
from port_weights import port
from tests.conftest import assert_close

torch = pytest.importorskip("torch", reason="requirements/libraries.txt is not installed")
pytest.importorskip("torchvision", reason="requirements/libraries.txt is not installed")
timm = pytest.importorskip("timm", reason="requirements/libraries.txt is not installed")

from tests.helpers import foreign_weights as foreign
from tests.port_weights.test_port_parity import FLOAT32_RELATIVE, build

IMAGE, PATCH, DIM, DEPTH, HEADS, CLASSES = 32, 8, 64, 3, 4, 7
KEPT = [5, 0, 12, 9]  # the patches that are visible


def timm_vit(**options):
    vit = timm.models.VisionTransformer(
        IMAGE, PATCH, num_classes=CLASSES, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, **options
    )
    return foreign.randomise(vit)


def kept():
    """Return which tokens are visible, [B, 1 + K]: the class token, and the patches of KEPT."""
    return torch.tensor([0, *(1 + index for index in KEPT)]).expand(foreign.BATCH, -1)


def noise():
    """Return noise [B, N] by which the patches of KEPT are visible."""
    values = np.ones((foreign.BATCH, 16), np.float32)
    values[:, KEPT] = np.arange(len(KEPT)) / 10
    return paddle.to_tensor(values)


def check(tmp_path, content, family, outputs, heads=(HEADS, None), config=None):
    torch.save(content, tmp_path / "source.pth")
    report = port(tmp_path / "source.pth", tmp_path / "ported.pdparams", heads=heads)
    assert report.family == family
    assert report.mapped + len(report.dropped) >= len(content.get("state_dict", content))
    model = build(tmp_path / "ported.pdparams")
    with paddle.no_grad():
        images = paddle.to_tensor(foreign.images().numpy())
        found = model(images, noise=noise())[1] if heads[1] else model(images)
    assert_close(found.numpy(), outputs.detach().numpy(), FLOAT32_RELATIVE)
    return report


def lightly_decode(decoder_embed, decoder, predict, tokens):
    """Decode as lightly's example does; returns [B, N, P*P*C]."""
    from lightly.models import utils

    embedded = decoder_embed(tokens)
    masked = utils.repeat_token(decoder.mask_token, (foreign.BATCH, 17))
    return predict(decoder(utils.set_at_index(masked, kept(), embedded.type_as(masked))))[:, 1:]


@pytest.mark.parametrize("decoder_kind", ["MAEDecoderTIMM", "MaskedVisionTransformerDecoderTIMM"])
def test_lightly_on_timm(tmp_path, decoder_kind):
    modules = pytest.importorskip("lightly.models.modules")
    backbone = foreign.randomise(modules.MaskedVisionTransformerTIMM(timm_vit()))
    tokens = backbone.encode(foreign.images(), idx_keep=kept())
    if decoder_kind == "MAEDecoderTIMM":
        decoder = modules.MAEDecoderTIMM(16, PATCH, 3, DIM, 32, 2, 2)
        parts = {"backbone": backbone, "decoder": foreign.randomise(decoder)}
        wanted = lightly_decode(decoder.embed, _Between(decoder), decoder.predict, tokens)
    else:
        parts = {"backbone": backbone, "decoder_embed": torch.nn.Linear(DIM, 32)}
        parts |= {"decoder": modules.MaskedVisionTransformerDecoderTIMM(16, 32, 2, 2)}
        parts |= {"prediction_head": torch.nn.Linear(32, PATCH**2 * 3), "online_classifier": torch.nn.Linear(DIM, 3)}
        for part in parts.values():
            foreign.randomise(part)
        wanted = lightly_decode(parts["decoder_embed"], parts["decoder"], parts["prediction_head"], tokens)
    content = {"state_dict": torch.nn.ModuleDict(parts).state_dict(), "epoch": 3}
    check(tmp_path, content, "lightly", wanted, (HEADS, 2))


class _Between(torch.nn.Module):
    """The middle of a decoder whose embedding and prediction are methods."""

    def __init__(self, decoder):
        super().__init__()
        self.mask_token, self.forward = decoder.mask_token, decoder.decode


def test_lightly_on_torchvision(tmp_path):
    modules = pytest.importorskip("lightly.models.modules")
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(IMAGE, PATCH, DEPTH, HEADS, DIM, 4 * DIM, num_classes=CLASSES)
    backbone = foreign.randomise(modules.MaskedVisionTransformerTorchvision(vit))
    decoder = foreign.randomise(modules.MAEDecoder(17, 2, 2, DIM, 32, 128, PATCH**2 * 3))
    decoder.mask_token = torch.nn.Parameter(torch.randn(1, 1, 32))
    wanted = lightly_decode(
        decoder.embed, _Between(decoder), decoder.predict, backbone.encode(foreign.images(), idx_keep=kept())
    )
    state = {f"backbone.{name}": tensor for name, tensor in backbone.state_dict().items()}
    state |= {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()}
    state["mask_token"] = state.pop("decoder.mask_token")  # where lightly's example has it
    check(tmp_path, state, "torchvision, or lightly on it", wanted, (HEADS, 2))


def test_torchvision(tmp_path):
    from torchvision.models import VisionTransformer

    vit = foreign.randomise(VisionTransformer(IMAGE, PATCH, DEPTH, HEADS, DIM, 4 * DIM, num_classes=CLASSES))
    check(tmp_path, vit.state_dict(), "torchvision, or lightly on it", vit(foreign.images()))


def test_solo_learn(tmp_path):
    """A ViT of timm under `backbone`, as solo-learn's BaseMethod has it, and a decoder of lightly's names."""
    modules = pytest.importorskip("lightly.models.modules")
    backbone = modules.MaskedVisionTransformerTIMM(timm_vit())
    decoder = foreign.randomise(modules.MAEDecoderTIMM(16, PATCH, 3, DIM, 32, 2, 2))
    tokens = backbone.encode(foreign.images(), idx_keep=kept())
    wanted = lightly_decode(decoder.embed, _Between(decoder), decoder.predict, tokens)
    parts = {"backbone": backbone.vit, "decoder": decoder, "classifier": torch.nn.Linear(DIM, 3)}
    check(tmp_path, {"state_dict": torch.nn.ModuleDict(parts).state_dict()}, "solo-learn", wanted, (HEADS, 2))


@pytest.fixture
def mmpretrain():
    pytest.importorskip("mmpretrain.models.backbones.vision_transformer")
    from mmpretrain import models

    return models


ARCH = {"embed_dims": DIM, "num_layers": DEPTH, "num_heads": HEADS, "feedforward_channels": 4 * DIM}


def test_mmpretrain_autoencoder(tmp_path, mmpretrain):
    from mmpretrain.models.necks.mae_neck import MAEPretrainDecoder
    from mmpretrain.models.selfsup.mae import MAEViT

    backbone = MAEViT(arch=ARCH, img_size=IMAGE, patch_size=PATCH)
    neck = MAEPretrainDecoder(16, PATCH, 3, DIM, 32, 2, 2)
    state = foreign.randomise(torch.nn.ModuleDict({"backbone": backbone, "neck": neck})).state_dict()
    restore = np.argsort(np.argsort(noise().numpy(), axis=1), axis=1)
    tokens = backbone.patch_embed(foreign.images())[0] + backbone.pos_embed[:, 1:]
    tokens = torch.cat([(backbone.cls_token + backbone.pos_embed[:, :1]).expand(foreign.BATCH, -1, -1), tokens], 1)
    tokens = tokens[:, kept()[0]]
    for layer in backbone.layers:
        tokens = layer(tokens)
    wanted = neck(backbone.norm1(tokens), torch.tensor(restore))
    check(tmp_path, {"meta": {"epoch": 3}, "state_dict": state}, "mmpretrain", wanted, (HEADS, 2))


@pytest.mark.parametrize("pooled", [False, True])
def test_mmpretrain_classifier(tmp_path, mmpretrain, pooled):
    from mmpretrain.models.heads import LinearClsHead, VisionTransformerClsHead

    options = {"out_type": "avg_featmap", "final_norm": False} if pooled else {"layer_scale_init_value": 0.1}
    backbone = mmpretrain.VisionTransformer(arch=ARCH, img_size=IMAGE, patch_size=PATCH, **options)
    head = (LinearClsHead if pooled else VisionTransformerClsHead)(CLASSES, DIM)
    model = foreign.randomise(torch.nn.ModuleDict({"backbone": backbone, "head": head}))
    wanted = head(backbone(foreign.images()))
    check(tmp_path, {"state_dict": model.state_dict()}, "mmpretrain", wanted)


VIT_PYTORCH = {"image_size": IMAGE, "patch_size": PATCH, "num_classes": CLASSES, "dim": 2 * DIM, "depth": DEPTH}
VIT_PYTORCH |= {"heads": 2, "mlp_dim": 3 * DIM}


def test_vit_pytorch(tmp_path):
    vit_pytorch = pytest.importorskip("vit_pytorch")
    vit = foreign.randomise(vit_pytorch.ViT(**VIT_PYTORCH))
    report = check(tmp_path, vit.state_dict(), "vit-pytorch", vit(foreign.images()), heads=(None, None))
    assert report.architecture.norm_eps == 1e-5
    if report.architecture.patch_norm:  # since version 1.0
        with pytest.raises(UserError, match="norms of the patches"):
            port(tmp_path / "ported.pdparams", tmp_path / "timm.pth", target="timm")
    port(tmp_path / "ported.pdparams", tmp_path / "back.pth", target="official")
    port(tmp_path / "back.pth", tmp_path / "again.pdparams", heads=(2, None))
    again = build(tmp_path / "again.pdparams")(paddle.to_tensor(foreign.images().numpy()))
    assert_close(again.numpy(), vit(foreign.images()).detach().numpy(), FLOAT32_RELATIVE)


def test_an_autoencoder_of_vit_pytorch_gives_its_encoder(tmp_path):
    vit_pytorch = pytest.importorskip("vit_pytorch")
    vit = foreign.randomise(vit_pytorch.ViT(**VIT_PYTORCH))
    mae = foreign.randomise(vit_pytorch.MAE(encoder=vit, decoder_dim=32, decoder_depth=1))
    report = check(tmp_path, mae.state_dict(), "vit-pytorch", vit(foreign.images()), heads=(None, None))
    assert "decoder that reads no class token" in report.dropped.values()


def test_models_that_are_not_here_are_named(tmp_path):
    vit_pytorch = pytest.importorskip("vit_pytorch")
    torch.save(vit_pytorch.ViT(**VIT_PYTORCH, pool="mean").state_dict(), tmp_path / "source.pth")
    with pytest.raises(UserError, match="without a class token"):
        port(tmp_path / "source.pth", tmp_path / "ported.pdparams")
    torch.save(vit_pytorch.ViT(**VIT_PYTORCH, dim_head=16).state_dict(), tmp_path / "source.pth")
    with pytest.raises(UserError, match="whose heads x dim_head is not dim"):
        port(tmp_path / "source.pth", tmp_path / "ported.pdparams")
    source = pytest.importorskip("lightly_train._models.dinov2_vit.dinov2_vit_src.models.vision_transformer")
    model = source.DinoVisionTransformer(img_size=28, patch_size=14, embed_dim=DIM, depth=2, num_heads=4)
    torch.save(model.state_dict(), tmp_path / "source.pth")
    with pytest.raises(UserError, match="in the style of DINOv2 or DINOv3"):
        port(tmp_path / "source.pth", tmp_path / "ported.pdparams")
