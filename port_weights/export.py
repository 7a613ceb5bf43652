"""Our tensors under the names, and in the layout, of other implementations."""

from errors import UserError
from port_weights import cross_decoder, names
from storage.architecture import Architecture, extras
from storage.stored_tensor import StoredTensor, sliced

Tensors = dict[str, StoredTensor]


def to_official(tensors: Tensors) -> Tensors:
    """Return tensors as the official code names them, matrices as [out, in]."""
    named = {names.official_name(name): tensor for name, tensor in names.transpose_linear(tensors).items()}
    return cross_decoder.with_official_names(named)


def _refuse_extras(architecture: Architecture, whose: str) -> None:
    """Raise UserError for what only the official names have a place for."""
    found = [field.metadata["words"] for field, _ in extras() if getattr(architecture, field.name)]
    found = list(dict.fromkeys(found))
    if found:
        raise UserError(f"{whose} as it is written here has no {', no '.join(found)}; -to official keeps them")


def to_timm(tensors: Tensors, architecture: Architecture) -> tuple[Tensors, list[str]]:
    """Return the tensors of a ViT of timm, and the official names of those that it does not have."""
    if architecture.probe:
        raise UserError("timm's ViT has no batch norm before its classifier, so a linear probe has no place there")
    _refuse_extras(architecture, "timm's ViT")
    official = to_official(tensors)
    decoder = [name for name in official if name.startswith("decoder_") or name == "mask_token"]
    return {name: tensor for name, tensor in official.items() if name not in decoder}, decoder


_TOP = {  # ours: transformers'
    "cls_token": "embeddings.cls_token",
    "encoder_position_embedding": "embeddings.position_embeddings",
    "patch_embedding.patch_embedding": "embeddings.patch_embeddings.projection",
    "encoder.norm": "layernorm",
}
_HEADS = {
    "classifier": "classifier",
    "mask_token": "decoder.mask_token",
    "decoder_position_embedding": "decoder.decoder_pos_embed",
    "linear_projection": "decoder.decoder_embed",
    "decoder.norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
_IN_LAYER = {
    "attn_norm": "layernorm_before",
    "attn.out": "attention.output.dense",
    "mlp_norm": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def to_transformers(tensors: Tensors, architecture: Architecture) -> tuple[Tensors, dict[str, object]]:
    """Return tensors as transformers' files name them, and its config.json."""
    _refuse_extras(architecture, "transformers' ViT")
    pools = architecture.global_pool or (architecture.pool_after_norm and architecture.num_classes)
    if pools or architecture.probe:
        what = "reads the mean of the patches" if pools else "has a batch norm"
        raise UserError(f"transformers' ViT has no classifier that {what}; -to official or timm keep it")
    base = "vit." if architecture.decoder is not None or architecture.num_classes else ""
    renamed: Tensors = {}
    for name, tensor in names.transpose_linear(tensors).items():
        module, _, kind = name.rpartition(".")
        if name in _TOP or name in _HEADS:
            renamed[f"{base}{_TOP[name]}" if name in _TOP else _HEADS[name]] = tensor
        elif module in _TOP or module in _HEADS:
            renamed[f"{base}{_TOP[module]}.{kind}" if module in _TOP else f"{_HEADS[module]}.{kind}"] = tensor
        else:
            part, _, index, layer_module = module.split(".", 3)
            layer = f"{base}encoder.layer.{index}" if part == "encoder" else f"decoder.decoder_layers.{index}"
            if layer_module == "attn.qkv":
                for third, letter in enumerate(("query", "key", "value")):
                    renamed[f"{layer}.attention.attention.{letter}.{kind}"] = sliced(tensor, third, 3)
            else:
                renamed[f"{layer}.{_IN_LAYER[layer_module]}.{kind}"] = tensor
    return renamed, _transformers_config(architecture)


def _transformers_config(architecture: Architecture) -> dict[str, object]:
    height, width = architecture.image_hw
    if architecture.decoder is not None:
        kind, model_type = "ViTMAEForPreTraining", "vit_mae"
    else:
        kind, model_type = "ViTForImageClassification" if architecture.num_classes else "ViTModel", "vit"
    config: dict[str, object] = {
        "architectures": [kind],
        "model_type": model_type,
        "hidden_size": architecture.encoder.width,
        "num_hidden_layers": architecture.encoder.depth,
        "num_attention_heads": architecture.encoder.heads,
        "intermediate_size": architecture.hidden_width(architecture.encoder),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": architecture.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": architecture.patch_px,
        "num_channels": architecture.channels,
        "qkv_bias": architecture.qkv_bias,
    }
    if architecture.num_classes:
        config["id2label"] = {str(index): f"LABEL_{index}" for index in range(architecture.num_classes)}
        config["label2id"] = {label: int(index) for index, label in config["id2label"].items()}
    if architecture.decoder is not None:
        config |= {
            "decoder_hidden_size": architecture.decoder.width,
            "decoder_num_hidden_layers": architecture.decoder.depth,
            "decoder_num_attention_heads": architecture.decoder.heads,
            "decoder_intermediate_size": architecture.hidden_width(architecture.decoder),
            "norm_pix_loss": architecture.norm_pix_loss is not False,
        }
    return config
