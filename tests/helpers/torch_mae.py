"""The same small MAE in torch (transformers' ViTMAE), and the mapping of its names to ours.

    python -m tests.helpers.torch_mae        # writes tests/golden/mae_{norm,raw}.npz; needs requirements/torch.txt

Weights, images and noise come from NumPy's generator, so that a golden file holds results only.
"""

import re

import numpy as np

from runtime import ROOT

GOLDEN = ROOT / "tests" / "golden"
IMAGE, PATCH, DIM, DEPTH, HEADS = 24, 8, 32, 2, 4
DECODER_DIM, DECODER_DEPTH, DECODER_HEADS = 16, 2, 2
BATCH, NUM_PATCHES, MASK_RATIO = 3, (IMAGE // PATCH) ** 2, 0.6
_LAYER = {
    "attn_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "attn.out": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TOP = {
    "cls_token": "vit.embeddings.cls_token",
    "encoder_position_embedding": "vit.embeddings.position_embeddings",
    "patch_embedding.patch_embedding": "vit.embeddings.patch_embeddings.projection",
    "encoder.norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_position_embedding": "decoder.decoder_pos_embed",
    "linear_projection": "decoder.decoder_embed",
    "decoder.norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}


def torch_names(name: str) -> list[str]:
    """Return the torch names behind one of ours; three for the fused q|k|v projection."""
    layer = re.match(r"(encoder|decoder)\.layers\.(\d+)\.(.+)\.(weight|bias)$", name)
    if layer:
        part, index, module, kind = layer.groups()
        prefix = f"vit.layers.{index}" if part == "encoder" else f"decoder.decoder_layers.{index}"
        if module == "attn.qkv":
            return [f"{prefix}.attention.{letter}_proj.{kind}" for letter in "qkv"]
        return [f"{prefix}.{_LAYER[module]}.{kind}"]
    module, dot, kind = name.rpartition(".")
    return [f"{_TOP[module]}.{kind}"] if dot and module in _TOP else [_TOP[name]]


def to_torch_layout(name: str, array: np.ndarray) -> list[np.ndarray]:
    """Cut and transpose one of our arrays into the arrays of `torch_names(name)`."""
    array = array.T if array.ndim == 2 else array  # linear weights are [in, out] in Paddle
    return np.split(array, 3) if ".attn.qkv." in name else [array]


def make_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Return images [B, 3, H, W] and noise [B, N]."""
    rng = np.random.default_rng(7)
    images = rng.normal(0, 1, (BATCH, 3, IMAGE, IMAGE)).astype(np.float32)
    return images, rng.random((BATCH, NUM_PATCHES)).astype(np.float32)


def make_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draw a weight for each of our names, in sorted order; position tables are left out."""
    rng = np.random.default_rng(11)
    weights = {}
    for name in sorted(shapes):
        if not name.endswith("position_embedding"):
            center = 1.0 if name.endswith("norm.weight") else 0.0
            weights[name] = rng.normal(center, 0.15, shapes[name]).astype(np.float32)
    return weights


def run_torch(weights: dict[str, np.ndarray], norm_pix_loss: bool) -> dict[str, np.ndarray]:
    """Return loss, pred, mask and every gradient ("grad/<our name>", in our layout) of the torch model."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=DIM,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=4 * DIM,
            image_size=IMAGE,
            patch_size=PATCH,
            decoder_hidden_size=DECODER_DIM,
            decoder_num_hidden_layers=DECODER_DEPTH,
            decoder_num_attention_heads=DECODER_HEADS,
            decoder_intermediate_size=4 * DECODER_DIM,
            mask_ratio=MASK_RATIO,
            norm_pix_loss=norm_pix_loss,
            layer_norm_eps=1e-6,
        )
    )
    # transformers 5.23 leaves the tables at zero when a model is built from a config: run its initialisation.
    model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(NUM_PATCHES)
    parameters = dict(model.named_parameters())
    for name, array in weights.items():
        for torch_name, part in zip(torch_names(name), to_torch_layout(name, array), strict=True):
            parameters[torch_name].data.copy_(torch.tensor(np.ascontiguousarray(part)))
    images, noise = make_inputs()
    output = model(torch.tensor(images), noise=torch.tensor(noise))
    output.loss.backward()
    results = {
        "loss": output.loss.detach().numpy(),
        "pred": output.logits.detach().numpy(),
        "mask": output.mask.numpy(),
    }
    for name in weights:
        parts = [parameters[torch_name].grad.numpy() for torch_name in torch_names(name)]
        gradient = np.concatenate(parts)
        results[f"grad/{name}"] = gradient.T if gradient.ndim == 2 else gradient
    for name in ("encoder_position_embedding", "decoder_position_embedding"):
        results[name] = parameters[torch_names(name)[0]].detach().numpy()
    return results


def our_model(norm_pix_loss: bool):
    """Build our model of the same size, with the same weights."""
    import paddle

    from mae import MAEPretrain
    from tests.helpers.small_models import mae_architecture

    encoder, decoder = (DIM, DEPTH, HEADS), (DECODER_DIM, DECODER_DEPTH, DECODER_HEADS)
    sizes = mae_architecture((IMAGE, IMAGE), encoder, decoder, PATCH, norm_pix_loss=norm_pix_loss)
    model = MAEPretrain(sizes, MASK_RATIO)
    state = model.state_dict()
    weights = make_weights({name: tuple(value.shape) for name, value in state.items()})
    for name, array in weights.items():
        state[name].set_value(paddle.to_tensor(array))
    return model, weights


def main() -> None:
    """Write the golden files."""
    for norm_pix_loss in (True, False):
        _, weights = our_model(norm_pix_loss)
        path = GOLDEN / f"mae_{'norm' if norm_pix_loss else 'raw'}.npz"
        results = run_torch(weights, norm_pix_loss)
        np.savez_compressed(path, **{name: value.astype(np.float32) for name, value in results.items()})
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
