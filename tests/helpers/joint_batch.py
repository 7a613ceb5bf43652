"""Train the tiny MAE on 21 images with masks that depend on the images alone; also run by two processes.

python -m paddle.distributed.launch --nproc_per_node 2 tests/helpers/joint_batch.py RUN_DIR WEIGHTS.npz KEY VALUE ...
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import runtime

runtime.prepare()

import numpy as np
import paddle

import datasets
from config import get_config
from layers import across_ranks
from methods import dispatch
from pipeline import loading, transforms
from pipeline.samplers import TrainSampler
from training import engine
from training.log import RunLog
from training.run import Run
from training.task import Task

NUM_IMAGES = 21


def image_masked_task(run: Run) -> Task:
    """Return the pretraining task with noise computed from the pixels, so that ranks and batches cannot matter."""
    task = dispatch.build_task(run)

    def loss(model, batch, rng):
        pixels = batch.images.reshape([len(batch), 16, -1]).sum(axis=-1)  # [B, N]
        return model(batch.images, noise=paddle.sin(pixels * 1000.0))[0], {}

    return Task(task.name, task.model, task.optimizer, loss)


def train(run: Run, given_masks: bool = True) -> dict[str, np.ndarray]:
    """Train, and return the weights."""
    config = run.config
    source = datasets.open_source("synthetic", "", "train", num_classes=4, synthetic_hw=(16, 16))
    source.images, source.labels = source.images[:NUM_IMAGES], source.labels[:NUM_IMAGES]
    sampler = TrainSampler(
        NUM_IMAGES,
        config.DATA.BATCH_SIZE,
        config.TRAIN.ACCUM_ITER,
        rank=runtime.rank(),
        world_size=runtime.world_size(),
        seed=config.SEED,
    )
    task = image_masked_task(run) if given_masks else dispatch.build_task(run)
    engine.fit(task, loading.Loader(source, transforms.eval_transform(config), sampler), None, run)
    return {name: value.numpy().copy() for name, value in task.model.state_dict().items()}


def comparable(name: str, value: np.ndarray) -> np.ndarray:
    """Cut the key part out of a qkv bias.

    The softmax does not see a constant that is added to all keys, so the gradient of a key's bias is zero in exact
    arithmetic, and Adam turns its rounding errors into steps.
    """
    if not name.endswith("attn.qkv.bias"):
        return value
    query, _, values = np.split(value, 3)
    return np.concatenate([query, values])


def main() -> None:
    """Train as one of several processes; rank 0 writes the weights, every rank checks that it has the same."""
    directory, result, *opts = sys.argv[1:]
    paddle.set_device("cpu")
    across_ranks.join()
    directory = Path(directory) if runtime.is_main() else None
    # Ranks that draw other initial weights show that wrapping the model makes them equal.
    config = get_config(None, opts)
    run = Run(config, directory, RunLog(directory, quiet=True))
    weights = train(run)
    for name, value in weights.items():
        spread = across_ranks.sum_across_ranks(value) / runtime.world_size() - value
        assert np.abs(spread).max() == 0.0, f"{name} differs between ranks"
    if runtime.is_main():
        np.savez(result, **weights)


if __name__ == "__main__":
    main()
