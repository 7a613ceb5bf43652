"""Weights of other implementations with known outputs, made with transformers' models in torch.

Each function of `CASES` returns what a file of that family holds, and the outputs that a port must reproduce. Names and
layout are written out here once more, by hand, so that a mistake in the project's own tables shows.
"""

import dataclasses
import itertools
import math

import numpy as np
import torch
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

IMAGE, PATCH, GRID = 32, 8, 4
DIM, DEPTH, HEADS, HIDDEN = 48, 3, 4, 192
DECODER_DIM, DECODER_DEPTH, DECODER_HEADS = 32, 2, 2
CLASSES, BATCH = 7, 3
NORM_EPS = 1e-6
SIZES = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "image_size": IMAGE,
    "patch_size": PATCH,
    "layer_norm_eps": NORM_EPS,
    "attn_implementation": "eager",
}


@dataclasses.dataclass
class Case:
    """A file's content, and what the ported model must give.

    Attributes:
        content: for torch.save.
        outputs: "features" and "logits" [B, .], or "pred" [B, N, P*P*3].
        family: how the report must call it.
        num_mapped: tensors of our model.
        heads: what -heads must say.
    """

    content: dict
    outputs: dict[str, np.ndarray]
    family: str
    num_mapped: int
    heads: tuple[int | None, int | None] = (HEADS, DECODER_HEADS)


def images() -> torch.Tensor:
    """Return [B, 3, H, W]."""
    return torch.randn(BATCH, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))


def noise() -> torch.Tensor:
    """Return [B, N]."""
    return torch.rand(BATCH, GRID**2, generator=torch.Generator().manual_seed(2))


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Draw every parameter, so that no bias is zero and no norm is one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(center + 0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vit_model(**sizes) -> ViTModel:
    """Return transformers' ViT without a pooler."""
    return randomise(ViTModel(ViTConfig(**{**SIZES, **sizes}), add_pooling_layer=False))


def mae_model() -> ViTMAEForPreTraining:
    """Return transformers' ViTMAE."""
    config = ViTMAEConfig(
        **SIZES,
        decoder_hidden_size=DECODER_DIM,
        decoder_num_hidden_layers=DECODER_DEPTH,
        decoder_num_attention_heads=DECODER_HEADS,
        decoder_intermediate_size=4 * DECODER_DIM,
        norm_pix_loss=True,
    )
    return randomise(ViTMAEForPreTraining(config))


def official_encoder(vit: torch.nn.Module, depth: int = DEPTH) -> dict[str, torch.Tensor]:
    """Give the parameters of a transformers ViT the names that the official MAE and timm use."""
    source = dict(vit.named_parameters())
    state = {
        "cls_token": source["embeddings.cls_token"],
        "pos_embed": source["embeddings.position_embeddings"],
        "patch_embed.proj.weight": source["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": source["embeddings.patch_embeddings.projection.bias"],
    }
    for index in range(depth):
        state |= official_block(source, f"layers.{index}", f"blocks.{index}")
    state["norm.weight"], state["norm.bias"] = source["layernorm.weight"], source["layernorm.bias"]
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def official_block(source: dict, prefix: str, new: str) -> dict[str, torch.Tensor]:
    state = {}
    for kind in ("weight", "bias"):
        state[f"{new}.norm1.{kind}"] = source[f"{prefix}.layernorm_before.{kind}"]
        thirds = [source[f"{prefix}.attention.{letter}_proj.{kind}"] for letter in "qkv"]
        state[f"{new}.attn.qkv.{kind}"] = torch.cat(thirds)
        state[f"{new}.attn.proj.{kind}"] = source[f"{prefix}.attention.o_proj.{kind}"]
        state[f"{new}.norm2.{kind}"] = source[f"{prefix}.layernorm_after.{kind}"]
        state[f"{new}.mlp.fc1.{kind}"] = source[f"{prefix}.mlp.fc1.{kind}"]
        state[f"{new}.mlp.fc2.{kind}"] = source[f"{prefix}.mlp.fc2.{kind}"]
    return state


def official_mae(model: ViTMAEForPreTraining) -> dict[str, torch.Tensor]:
    """Give the parameters of transformers' ViTMAE their official names."""
    state = official_encoder(model.vit)
    source = dict(model.decoder.named_parameters())
    for name in ("mask_token", "decoder_pos_embed"):
        state[name] = source[name]
    for module in ("decoder_embed", "decoder_norm", "decoder_pred"):
        for kind in ("weight", "bias"):
            state[f"{module}.{kind}"] = source[f"{module}.{kind}"]
    for index in range(DECODER_DEPTH):
        state |= official_block(source, f"decoder_layers.{index}", f"decoder_blocks.{index}")
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@torch.no_grad()
def tokens_before_norm(vit: ViTModel) -> torch.Tensor:
    norm, vit.layernorm = vit.layernorm, torch.nn.Identity()
    tokens = vit(images(), interpolate_pos_encoding=False).last_hidden_state
    vit.layernorm = norm
    return tokens


@torch.no_grad()
def class_features(vit: ViTModel) -> torch.Tensor:
    return vit(images()).last_hidden_state[:, 0]


def head(seed: int = 4, dim: int = DIM) -> torch.nn.Linear:
    return randomise(torch.nn.Linear(dim, CLASSES))


def encoder_tensors(depth: int = DEPTH) -> int:
    return 4 + 12 * depth + 2


MAE_TENSORS = encoder_tensors() + 2 + 2 + 12 * DECODER_DEPTH + 2 + 2


def official_pretrain_full() -> Case:
    model = mae_model()
    with torch.no_grad():
        outputs = model(images(), noise=noise())
    content = {"model": official_mae(model)}
    return Case(content, {"pred": outputs.logits.numpy(), "loss": outputs.loss.numpy()}, "official MAE", MAE_TENSORS)


def official_pretrain_encoder() -> Case:
    vit = vit_model()
    outputs = {"features": class_features(vit).numpy()}
    return Case({"model": official_encoder(vit)}, outputs, "official MAE", encoder_tensors(), (HEADS, None))


def official_finetuned() -> Case:
    vit, linear = vit_model(), head()
    state = official_encoder(vit)
    with torch.no_grad():
        mean = tokens_before_norm(vit)[:, 1:].mean(dim=1)
        features = torch.nn.functional.layer_norm(mean, (DIM,), vit.layernorm.weight, vit.layernorm.bias, NORM_EPS)
        outputs = {"features": features.numpy(), "logits": linear(features).numpy()}
    for kind in ("weight", "bias"):
        state[f"fc_norm.{kind}"] = state.pop(f"norm.{kind}")
        state[f"head.{kind}"] = getattr(linear, kind).detach()
    return Case({"model": state, "epoch": 99}, outputs, "official MAE", encoder_tensors() + 2, (HEADS, None))


def official_linear_probe() -> Case:
    vit, linear = vit_model(), head()
    norm = torch.nn.BatchNorm1d(DIM, affine=False, eps=1e-6)
    norm(class_features(vit))  # moves the running statistics off their start
    norm.eval()
    with torch.no_grad():
        outputs = {"features": class_features(vit).numpy(), "logits": linear(norm(class_features(vit))).numpy()}
    state = official_encoder(vit)
    state |= {f"head.0.{name}": tensor for name, tensor in norm.state_dict().items()}
    state |= {f"head.1.{name}": tensor for name, tensor in linear.state_dict().items()}
    return Case({"model": state}, outputs, "official MAE", encoder_tensors() + 4, (HEADS, None))


def timm_classifier() -> Case:
    vit, linear = vit_model(), head()
    features = class_features(vit)
    state = official_encoder(vit) | {f"head.{name}": tensor for name, tensor in linear.state_dict().items()}
    with torch.no_grad():
        outputs = {"features": features.numpy(), "logits": linear(features).numpy()}
    return Case(state, outputs, "timm ViT or MAWS, which share their names", encoder_tensors() + 2, (HEADS, None))


def mae_ct() -> Case:
    vit = vit_model()
    with torch.no_grad():  # a fixed table; the class token has no position, so its row is zero
        table = vit.embeddings.position_embeddings[0]
        table[:] = 0
        for row, column, k in itertools.product(range(GRID), range(GRID), range(DIM // 4)):
            for half, position in enumerate((column, row)):
                angle = position / 10000 ** (k / (DIM // 4))
                table[1 + row * GRID + column, half * DIM // 2 + k] = math.sin(angle)
                table[1 + row * GRID + column, half * DIM // 2 + DIM // 4 + k] = math.cos(angle)
    state = official_encoder(vit)
    state["pos_embed"] = state["pos_embed"][:, 1:].clone()
    outputs = {"features": class_features(vit).numpy()}
    content = {"state_dict": state, "ctor_kwargs": {"patch_size": PATCH}}
    return Case(
        content, outputs, "MAE-CT, or timm without a position for the class token", encoder_tensors(), (HEADS, None)
    )


def mae_lite(prefix: str = "module.model.") -> Case:
    lite = {"hidden_size": 192, "num_attention_heads": 12, "intermediate_size": 768}  # 12 heads, unlike DeiT's 3
    vit = vit_model(**lite)
    state = {f"{prefix}{name}": tensor for name, tensor in official_encoder(vit).items()}
    teacher = {f"module.tch_model.{name}": tensor for name, tensor in official_encoder(vit_model()).items()}
    content = {
        "start_epoch": 400,
        "model": state | teacher | {"module.attn_adapter.adapter11.weight": torch.randn(12, 12, 1, 1)},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        "best_top1": 0.0,
    }
    outputs = {"features": class_features(vit).numpy()}
    return Case(content, outputs, "MAE-Lite", encoder_tensors(), (None, None))


def moco_v3() -> Case:
    case = mae_lite("module.base_encoder.")
    case.family = "MAE-Lite's MoCo v3"
    momentum = {name.replace("base_", "momentum_"): tensor for name, tensor in case.content["model"].items()}
    case.content["model"] |= {name: tensor for name, tensor in momentum.items() if "momentum_" in name}
    case.content["model"]["module.base_encoder.head.0.weight"] = torch.randn(4096, 192)
    case.content["model"]["module.predictor.0.weight"] = torch.randn(4096, 256)
    return case


def in_library(case: Case, family: str, spell, drops: dict[str, torch.Tensor] | None = None) -> Case:
    """Give the official tensors of a case the names of a library, by a function of an official name."""
    state = case.content.get("model", case.content)
    content = {spell(name): tensor for name, tensor in state.items()} | (drops or {})
    return dataclasses.replace(case, content={"state_dict": content}, family=family)


def lightly() -> Case:
    def spell(name: str) -> str:
        return f"decoder.{name}" if name.startswith(("decoder_", "mask_token")) else f"backbone.vit.{name}"

    drops = {"backbone.mask_token": torch.zeros(1, 1, DIM), "backbone.vit.head.weight": torch.zeros(9, DIM)}
    drops |= {"backbone.vit.head.bias": torch.zeros(9), "online_classifier.linear.weight": torch.zeros(9, DIM)}
    return in_library(official_pretrain_full(), "lightly", spell, drops)


def solo_learn() -> Case:
    def spell(name: str) -> str:
        return f"decoder.{name}" if name.startswith(("decoder_", "mask_token")) else f"backbone.{name}"

    drops = {"classifier.weight": torch.zeros(9, DIM), "classifier.bias": torch.zeros(9)}
    return in_library(official_pretrain_full(), "solo-learn", spell, drops)


def spell_mmpretrain(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "head":
        return f"head.fc.{parts[1]}"
    if parts[0] in ("blocks", "decoder_blocks"):
        layer = ".".join(parts[2:-1])
        layer = {"norm1": "ln1", "norm2": "ln2", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}.get(
            layer, layer
        )
        stack = "backbone.layers" if parts[0] == "blocks" else "neck.decoder_blocks"
        return f"{stack}.{parts[1]}.{layer}.{parts[-1]}"
    if parts[0] in ("norm", "fc_norm", "decoder_norm"):
        module = {"norm": "backbone.ln1", "fc_norm": "backbone.ln2", "decoder_norm": "neck.ln1"}[parts[0]]
        return f"{module}.{parts[1]}"
    if name.startswith(("decoder_", "mask_token")):
        return f"neck.{name}"
    return f"backbone.{name.replace('patch_embed.proj', 'patch_embed.projection')}"


def mmpretrain_autoencoder() -> Case:
    return in_library(official_pretrain_full(), "mmpretrain", spell_mmpretrain)


def mmpretrain_classifier() -> Case:
    return in_library(official_finetuned(), "mmpretrain", spell_mmpretrain)


def torchvision_classifier() -> Case:
    layer = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    top = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    modules = {"patch_embed.proj": "conv_proj", "norm": "encoder.ln", "head": "heads.head"}

    def spell(name: str) -> str:
        module, _, kind = name.rpartition(".")
        if not name.startswith("blocks."):
            return top.get(name) or f"{modules[module]}.{kind}"
        _, number, inside = module.split(".", 2)
        block = f"encoder.layers.encoder_layer_{number}"
        return f"{block}.self_attention.in_proj_{kind}" if inside == "attn.qkv" else f"{block}.{layer[inside]}.{kind}"

    return in_library(timm_classifier(), "torchvision, or lightly on it", spell)


def vit_pytorch() -> Case:
    """A ViT as vit-pytorch had it before version 1.0: no biases of queries, keys and values, norms with 1e-5."""
    width = {"hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 160, "layer_norm_eps": 1e-5}
    vit, linear = vit_model(**width), head(dim=128)
    for name, parameter in vit.named_parameters():
        if name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias")):
            torch.nn.init.zeros_(parameter)
    layer = {"norm1": "0.norm", "attn.qkv": "0.fn.to_qkv", "attn.proj": "0.fn.to_out.0", "norm2": "1.norm"}
    layer |= {"mlp.fc1": "1.fn.net.0", "mlp.fc2": "1.fn.net.3"}
    modules = {"patch_embed.proj": "to_patch_embedding.1", "norm": "mlp_head.0", "head": "mlp_head.1"}

    def spell(name: str) -> str:
        module, _, kind = name.rpartition(".")
        if not name.startswith("blocks."):
            return {"pos_embed": "pos_embedding"}.get(name, name) if not module else f"{modules[module]}.{kind}"
        _, number, inside = module.split(".", 2)
        return f"transformer.layers.{number}.{layer[inside]}.{kind}"

    state = official_encoder(vit) | {f"head.{name}": tensor for name, tensor in linear.state_dict().items()}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("qkv.bias")}
    weight = state["patch_embed.proj.weight"]  # pixels in (row, column, channel) order
    state["patch_embed.proj.weight"] = weight.permute(0, 2, 3, 1).reshape(128, -1).contiguous()
    features = class_features(vit)
    with torch.no_grad():
        outputs = {"features": features.numpy(), "logits": linear(features).numpy()}
    case = Case(state, outputs, "", encoder_tensors() + 2 - DEPTH, (None, None))
    return in_library(case, "vit-pytorch", spell)


CASES = {
    function.__name__: function
    for function in (
        official_pretrain_full,
        official_pretrain_encoder,
        official_finetuned,
        official_linear_probe,
        timm_classifier,
        mae_ct,
        mae_lite,
        moco_v3,
        lightly,
        solo_learn,
        mmpretrain_autoencoder,
        mmpretrain_classifier,
        torchvision_classifier,
        vit_pytorch,
    )
}
