"""The norm after an encoder that was pretrained without one."""

from collections.abc import Mapping

import numpy as np

from storage.stored_tensor import StoredTensor


def missing_last_norm(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return `encoder.norm` of ones and zeros for weights whose decoder reads the encoder's blocks before any norm.

    Official finetuning of CrossMAE starts from these values. Empty for all other weights.
    """
    if "decoder.source_mix.weight" not in tensors or "encoder.norm.weight" in tensors:
        return {}
    width = tensors["cls_token"].shape[-1]
    values = {"weight": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    return {f"encoder.norm.{kind}": StoredTensor.of(value) for kind, value in values.items()}
