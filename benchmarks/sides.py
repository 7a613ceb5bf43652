"""The steps that are timed: ours, and one of a peer in torch, on the same synthetic batch. Imported by worker.py only.

A side is a function (config, batch size) -> step, where step() does one update or one forward pass, and returns when
the device is done.
"""

from collections.abc import Callable

import numpy as np

import runtime
from config import amp_dtype, network_kind
from measures.synthetic import flop_per_image, synthetic_arrays
from storage.architecture import of_config

Step = Callable[[], None]


def make_step(side: str, config, batch_size: int) -> tuple[Step, float]:
    """Build the step of a side: "ours" or "torch"; MODEL.TYPE and EVAL choose it.

    Returns:
        the step, and its FLOPs per image; each view counts as an image.
    """
    images, labels = synthetic_arrays(config, batch_size)
    if side != "ours":
        return _torch(config, images, labels)
    from measures import training_step
    from training import device

    device.set_device()
    return training_step.make_step(config, images, labels)


def describe(side: str, config) -> dict[str, object]:
    """Return the device, the precision and the attention kernel of a side whose step was built."""
    if side != "ours":
        import torch

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        is_low = device != "cpu" and amp_dtype(config) is not None
        return {"device": device, "precision": amp_dtype(config) if is_low else "float32", "attention": "sdpa"}
    import paddle

    from layers import kernels
    from training.device import autocast_dtype, is_on_gpu

    precision, architecture = autocast_dtype(config), of_config(config, network_kind(config))
    widths = [tower.width // tower.heads for tower in architecture.towers]
    return {
        "device": paddle.device.cuda.get_device_name() if is_on_gpu() else paddle.device.get_device(),
        "precision": precision or "float32",
        "attention": kernels.describe_attention(precision, widths),
    }


def _torch_network(config, images: np.ndarray):
    """Build transformers' ViTMAE, or its ViT classifier, of a configuration's sizes."""
    import transformers

    encoder, model = config.MODEL.ENCODER, config.MODEL
    sizes = {
        "hidden_size": encoder.EMBED_DIM,
        "num_hidden_layers": encoder.DEPTH,
        "num_attention_heads": encoder.NUM_HEADS,
        "intermediate_size": int(encoder.EMBED_DIM * model.MLP_RATIO),
        "image_size": images.shape[-1],
        "patch_size": model.PATCH_SIZE,
        "num_channels": images.shape[1],
    }
    if network_kind(config) != "autoencoder":
        settings = transformers.ViTConfig(**sizes, num_labels=model.NUM_CLASSES)
        return transformers.ViTForImageClassification._from_config(settings, attn_implementation="sdpa")
    decoder = model.DECODER
    settings = transformers.ViTMAEConfig(
        **sizes,
        decoder_hidden_size=decoder.EMBED_DIM,
        decoder_num_hidden_layers=decoder.DEPTH,
        decoder_num_attention_heads=decoder.NUM_HEADS,
        decoder_intermediate_size=int(decoder.EMBED_DIM * model.MLP_RATIO),
        mask_ratio=model.MASK_RATIO,
        norm_pix_loss=model.NORM_PIX_LOSS,
    )
    return transformers.ViTMAEForPreTraining._from_config(settings, attn_implementation="sdpa")


def _torch(config, images: np.ndarray, labels: np.ndarray) -> tuple[Step, float]:
    """Build the step of a network of transformers, with torch's fused AdamW."""
    import torch

    torch.set_num_threads(runtime.num_cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, inputs = _torch_network(config, images), {"pixel_values": torch.from_numpy(images).to(device)}
    if network_kind(config) != "autoencoder":
        inputs["labels"] = torch.from_numpy(labels).to(device)
    network.to(device)
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    dtype = getattr(torch, amp_dtype(config) or "float32")

    def autocast():
        return torch.autocast(device, dtype, enabled=device == "cuda" and dtype != torch.float32)

    if config.EVAL:
        network.eval()
        inputs.pop("labels", None)

        def forward() -> None:
            with torch.no_grad(), autocast():
                network(**inputs)
            synchronise()

        return forward, flop_per_image(config)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)

    def update() -> None:
        with autocast():
            loss = network(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise()

    return update, flop_per_image(config)
