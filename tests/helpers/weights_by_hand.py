"""A small encoder under its official names, written out by hand, without torch."""

import numpy as np

DIM, DEPTH, PATCH, GRID, HEADS = 16, 2, 4, 2, 4


def official_shapes(
    dim: int = DIM, depth: int = DEPTH, patch: int = PATCH, num_patches: int = GRID**2, num_classes: int = 0
) -> dict[str, tuple[int, ...]]:
    """Return the documented names and shapes of an encoder, matrices as [out, in]."""
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, num_patches + 1, dim),
        "patch_embed.proj.weight": (dim, 3, patch, patch),
        "patch_embed.proj.bias": (dim,),
    }
    for block in range(depth):
        shapes |= {
            f"blocks.{block}.norm1.weight": (dim,),
            f"blocks.{block}.norm1.bias": (dim,),
            f"blocks.{block}.attn.qkv.weight": (3 * dim, dim),
            f"blocks.{block}.attn.qkv.bias": (3 * dim,),
            f"blocks.{block}.attn.proj.weight": (dim, dim),
            f"blocks.{block}.attn.proj.bias": (dim,),
            f"blocks.{block}.norm2.weight": (dim,),
            f"blocks.{block}.norm2.bias": (dim,),
            f"blocks.{block}.mlp.fc1.weight": (4 * dim, dim),
            f"blocks.{block}.mlp.fc1.bias": (4 * dim,),
            f"blocks.{block}.mlp.fc2.weight": (dim, 4 * dim),
            f"blocks.{block}.mlp.fc2.bias": (dim,),
        }
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    if num_classes:
        shapes |= {"head.weight": (num_classes, dim), "head.bias": (num_classes,)}
    return shapes


def official_decoder_shapes(dim: int, patch: int, num_patches: int) -> dict[str, tuple[int, ...]]:
    """Return the documented names and shapes of the official decoder, 512 wide and 8 deep."""
    blocks = official_shapes(512, 8)
    shapes = {f"decoder_{name}": shape for name, shape in blocks.items() if name.startswith(("blocks.", "norm."))}
    return shapes | {
        "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, num_patches + 1, 512),
        "decoder_embed.weight": (512, dim),
        "decoder_embed.bias": (512,),
        "decoder_pred.weight": (patch * patch * 3, 512),
        "decoder_pred.bias": (patch * patch * 3,),
    }


def official_arrays(**sizes: int) -> dict[str, np.ndarray]:
    """Return random weights of such an encoder."""
    rng = np.random.default_rng(5)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in official_shapes(**sizes).items()}
