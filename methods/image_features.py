"""Features of all images of a data set, computed once by an encoder that does not train."""

import numpy as np
import paddle

import runtime
from errors import UserError
from layers import across_ranks
from pipeline.loading import with_progress
from pipeline.samplers import EvalSampler
from pipeline.transforms import eval_transform
from training import loaders
from training.device import autocast
from training.run import Run
from transformer import VisionTransformer

_MOST_OF_MEMORY = 0.5


@paddle.no_grad()
def of_train_split(run: Run, encoder: VisionTransformer) -> np.ndarray:
    """Return the features [N, D] of the whole train split, as evaluation sees the images; each rank computes a share.

    Raises:
        UserError: if they do not fit into the memory, or an image cannot be read: a feature must belong to each.
    """
    config = run.config
    source = loaders.open_once(run, "train", "caption")
    width = encoder.cls_token.shape[-1]
    num_bytes, there = len(source) * width * 4, runtime.memory_bytes()
    ranks = runtime.local_ranks()  # each has all of them
    if there is not None and ranks * num_bytes > _MOST_OF_MEMORY * there:
        raise UserError(
            f"LIT.CACHE_FEATURES=True: the features of {len(source):,} images take {num_bytes / 2**30:,.1f} GiB in "
            f"each of {ranks} processes here, together more than half of the memory; set it to False"
        )
    run.log.say(f"computing the features of {len(source):,} images once")
    encoder.eval()
    batch_size = config.DATA.BATCH_SIZE_EVAL or config.DATA.BATCH_SIZE
    sampler = EvalSampler(len(source), batch_size, runtime.rank(), runtime.world_size())
    loader = loaders.build_loader(config, source, eval_transform(config), sampler, note_bad=run.bad_images.append)
    features = np.zeros((len(source), width), np.float32)
    is_done = np.zeros(len(source), np.float32)
    own = len(source) // runtime.world_size()
    for batch in with_progress(loader, own, "features", run.log.say):
        with autocast(config):
            vectors = encoder(batch.images)
        indices = batch.host_indices
        features[indices], is_done[indices] = vectors.astype("float32").numpy(), 1.0
    across_ranks.exchange_rows(features)
    is_done = across_ranks.sum_across_ranks(is_done)
    lacking = np.flatnonzero(is_done == 0)
    if len(lacking):
        raise UserError(
            f"LIT.CACHE_FEATURES=True: {len(lacking)} images cannot be read, first {source.describe(lacking[0])}; "
            "take them out of the data set (python -m tools.check_dataset lists them), or set it to False"
        )
    return features
