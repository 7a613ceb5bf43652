"""The steps that are timed: ours, and one of a peer in torch, on the same synthetic batch. Imported by worker.py only.

A side is a function (config, batch size) -> step, where step() does one update or one forward pass, and returns when
the device is done.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import runtime
from config import amp_dtype, image_size_hw, network_kind
from errors import UserError
from storage.architecture import of_config
from training import flops

Step = Callable[[], None]


def make_step(side: str, config, batch_size: int) -> tuple[Step, float]:
    """Build the step of a side: "ours" or "torch"; MODEL.TYPE and EVAL choose it.

    Returns:
        the step, and its FLOPs per image; each view counts as an image.
    """
    shape = (batch_size, config.DATA.IMAGE_CHANNELS, *image_size_hw(config))
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    labels = np.random.default_rng(1).integers(0, max(1, config.MODEL.NUM_CLASSES), batch_size)
    return (_ours if side == "ours" else _torch)(config, images, labels)


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


def _ours(config, images: np.ndarray, labels: np.ndarray) -> tuple[Step, float]:
    import paddle

    from launch.stop import StopRequest
    from methods import dispatch
    from pipeline.loading import Batch
    from pipeline.samplers import TrainSampler
    from training import device
    from training.device import autocast
    from training.engine import Training
    from training.log import RunLog
    from training.plan import make_plan, train_flops
    from training.run import Run

    device.set_device()
    run = Run(config, None, RunLog(None, quiet=True), resume_from=Path("nothing is loaded"))
    task = dispatch.build_task(run)
    num_views = 1 if config.EVAL else len(dispatch.train_transform(config).views)
    if len(images) % num_views:
        raise UserError(f"-batch_size {len(images)}: must be divisible by the {num_views} views, which count as images")
    count = len(images) // num_views
    views = tuple(map(paddle.to_tensor, np.split(images, num_views)))
    batch = Batch(views, labels[:count].astype(np.int64), np.arange(count))
    synchronise = paddle.device.synchronize if paddle.device.is_compiled_with_cuda() else lambda: None
    if config.EVAL:
        task.model.eval()
        runtime.keep_large_blocks()

        def forward() -> None:
            with paddle.no_grad(), autocast(config):
                task.model(batch.images)
            synchronise()

        return forward, _flop_per_image(config)
    loader = _OneBatch(batch, TrainSampler(count * 1000, count))
    training = Training(task, loader, None, run, make_plan(config, loader), StopRequest(print))
    training.start()
    batches = loader.epoch()

    def update() -> None:
        training.update(batches, 0, 1e-4)
        training.step += 1
        synchronise()

    return update, train_flops(task, config) / num_views


def _flop_per_image(config) -> float:
    """Return the FLOPs of a step of a network without other parts."""
    architecture, mask_ratio = of_config(config, network_kind(config)), config.MODEL.MASK_RATIO
    forward = 2 * flops.forward_macs(architecture, mask_ratio)
    return forward if config.EVAL else flops.train_flops(architecture, mask_ratio)


class _OneBatch:
    """A loader that gives the same batch again and again."""

    source, waited_secs = None, 0.0

    def __init__(self, batch, sampler):
        self._batch, self.sampler = batch, sampler

    def epoch(self) -> Iterator[list]:
        """Repeat the batch without end."""
        return itertools.repeat(self._batch)


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
    """Build the step of a network of transformers, with torch's AdamW."""
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

        return forward, _flop_per_image(config)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)

    def update() -> None:
        with autocast():
            loss = network(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronise()

    return update, _flop_per_image(config)
