"""A CLIP model out of transformers' ViT and XLM-R with random weights, and the file that MAWS would write of it.

Names and layouts are written out by hand, so that a mistake in the project's own tables shows.
"""

import numpy as np
import torch
from transformers import ViTConfig, ViTModel, XLMRobertaConfig, XLMRobertaModel

from tests.helpers.foreign_weights import DEPTH, DIM, SIZES

TEXT_DIM, TEXT_DEPTH, TEXT_HEADS, VOCAB, POSITIONS, EMBED = 40, 2, 5, 345, 40, 24
PREFIX = "text_encoder.encoder.transformer."
LAYERS = {
    "new": ("layers.layers", "self_attn.in_proj_{}", "self_attn.out_proj.{}", "linear1", "linear2", "norm1", "norm2"),
    "old": (
        "layers",
        "attention.input_projection.{}",
        "attention.output_projection.{}",
        "residual_mlp.mlp.0",
        "residual_mlp.mlp.3",
        "attention_layer_norm",
        "final_layer_norm",
    ),
}


def text_model(num_types: int = 1) -> XLMRobertaModel:
    """Return an XLM-R whose norms and biases are not at their first values."""
    torch.manual_seed(3)
    config = XLMRobertaConfig(
        vocab_size=VOCAB,
        hidden_size=TEXT_DIM,
        num_hidden_layers=TEXT_DEPTH,
        num_attention_heads=TEXT_HEADS,
        intermediate_size=4 * TEXT_DIM,
        max_position_embeddings=POSITIONS,
        type_vocab_size=num_types,
        layer_norm_eps=1e-5,
        pad_token_id=1,
        attn_implementation="eager",
    )
    return _shaken(XLMRobertaModel(config, add_pooling_layer=False))


def image_model() -> ViTModel:
    """Return a ViT without transformers' pooler."""
    torch.manual_seed(4)
    return _shaken(ViTModel(ViTConfig(**SIZES), add_pooling_layer=False))


def _shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def projections() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return both projections and the scale's logarithm."""
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(DIM, EMBED, generator=generator) * DIM**-0.5
    return image, torch.randn(TEXT_DIM, EMBED, generator=generator) * TEXT_DIM**-0.5, torch.tensor(2.5)


def ids() -> np.ndarray:
    """Return the ids of four texts of 3 to 12 tokens, filled up with 1."""
    rng = np.random.default_rng(6)
    padded = np.full((4, 12), 1, np.int64)
    for row, length in zip(padded, (12, 3, 7, 9), strict=True):
        row[:length] = [0, *rng.integers(4, VOCAB, length - 2), 2]
    return padded


def image_state(model: ViTModel) -> dict[str, torch.Tensor]:
    """Return a ViT's weights under timm's names."""
    state, renamed = model.state_dict(), {}
    renamed["cls_token"] = state["embeddings.cls_token"]
    renamed["pos_embed"] = state["embeddings.position_embeddings"]
    for kind in ("weight", "bias"):
        renamed[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        renamed[f"norm.{kind}"] = state[f"layernorm.{kind}"]
    for index, layer in enumerate(_layers_of(model)):
        own = dict(layer.named_parameters())
        find = lambda *ends, own=own: next(value for name, value in own.items() if name.endswith(ends))
        for kind in ("weight", "bias"):
            parts = [find(f"query.{kind}", f"q_proj.{kind}"), find(f"key.{kind}", f"k_proj.{kind}")]
            parts.append(find(f"value.{kind}", f"v_proj.{kind}"))
            renamed[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(parts).detach()
            for ours, theirs in (
                ("norm1", ("layernorm_before",)),
                ("norm2", ("layernorm_after",)),
                ("attn.proj", ("attention.output.dense", "attention.o_proj")),
                ("mlp.fc1", ("intermediate.dense", "mlp.fc1")),
                ("mlp.fc2", ("output.dense", "mlp.fc2")),
            ):
                ends = tuple(f"{end}.{kind}" for end in theirs)
                values = [value for name, value in own.items() if name.endswith(ends)]
                values = [v for v in values if ours != "mlp.fc2" or kind == "bias" or v.shape[1] > v.shape[0]]
                renamed[f"blocks.{index}.{ours}.{kind}"] = values[-1 if ours == "mlp.fc2" else 0].detach()
    return renamed


def _layers_of(model: ViTModel):
    return next(layers for name, layers in model.named_modules() if isinstance(layers, torch.nn.ModuleList))


def text_state(model: XLMRobertaModel, layout: str) -> dict[str, torch.Tensor]:
    """Return an XLM-R's weights as torchtext names them; token types go into the positions."""
    state = model.state_dict()
    top, in_proj, out_proj, *rest = LAYERS[layout]
    positions = state["embeddings.position_embeddings.weight"] + state["embeddings.token_type_embeddings.weight"]
    renamed = {
        "token_embedding.weight": state["embeddings.word_embeddings.weight"],
        "positional_embedding.embedding.weight": positions,
    }
    for kind in ("weight", "bias"):
        renamed[f"embedding_layer_norm.{kind}"] = state[f"embeddings.LayerNorm.{kind}"]
        for index in range(TEXT_DEPTH):
            theirs = f"encoder.layer.{index}"
            parts = [state[f"{theirs}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            renamed[f"{top}.{index}.{in_proj.format(kind)}"] = torch.cat(parts)
            renamed[f"{top}.{index}.{out_proj.format(kind)}"] = state[f"{theirs}.attention.output.dense.{kind}"]
            modules = ("intermediate.dense", "output.dense", "attention.output.LayerNorm", "output.LayerNorm")
            for name, module in zip(rest, modules, strict=True):
                renamed[f"{top}.{index}.{name}.{kind}"] = state[f"{theirs}.{module}.{kind}"]
    return {f"{PREFIX}{name}": tensor.clone() for name, tensor in renamed.items()}


def maws_file(layout: str = "new") -> dict[str, torch.Tensor]:
    """Return what torch.save gets of a whole CLIP model."""
    image, text, scale = projections()
    content = {"logit_scale": scale, "vision_projection": image, "text_projection": text}
    content |= {f"vision_encoder.{name}": tensor for name, tensor in image_state(image_model()).items()}
    return content | text_state(text_model(), layout)


__all__ = ["DEPTH", "image_model", "maws_file", "projections", "text_model"]
