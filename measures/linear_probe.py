"""Linear classifiers of features in memory or in mapped files: logistic regression, several learning rates at once."""

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F

from errors import UserError

RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
EPOCHS, _BATCH, _MOMENTUM = 30, 256, 0.9
_HELD_OUT = 0.1  # share of the training images on which the rate is chosen
_ROWS = 4096  # at a time
_EPS = 1e-6


class Heads(NamedTuple):
    """Linear classifiers of standardised features.

    Attributes:
        weight: [D, R, K], for each of R learning rates.
        bias: [R, K].
        mean, scale: [D], of the standardisation.
    """

    weight: paddle.Tensor
    bias: paddle.Tensor
    mean: np.ndarray
    scale: np.ndarray

    def standardise(self, features: np.ndarray) -> paddle.Tensor:
        """Return features [B, D] with the mean and the deviation of the fitted ones taken out."""
        return paddle.to_tensor((np.asarray(features, np.float32) - self.mean) * self.scale)

    def logits(self, standard: paddle.Tensor) -> paddle.Tensor:
        """Return [B, R, K] of standardised features [B, D]."""
        return paddle.matmul(standard, self.weight.flatten(1)).reshape([-1, *self.bias.shape]) + self.bias

    def count_right(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return how many images [N, D] each of the R classifiers gets right."""
        right = np.zeros(self.bias.shape[0], np.int64)
        for first in range(0, len(labels), _ROWS):
            part = slice(first, first + _ROWS)
            right += (self.logits(self.standardise(features[part])).argmax(axis=-1).numpy() == labels[part, None]).sum(
                axis=0
            )
        return right


@paddle.no_grad()
def fit_heads(
    features: np.ndarray, labels: np.ndarray, rates: tuple[float, ...] = RATES, epochs: int = EPOCHS, seed: int = 0
) -> Heads:
    """Fit multinomial logistic regression by SGD with momentum, without augmentation or weight decay.

    Rates fall to 0 along a cosine; the weights begin at 0, and all rates see the same batches.

    Args:
        features: [N, D].
        labels: [N], from 0.
        rates: learning rates for batches of 256 images.
        seed: of the order of the images.
    """
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = 1.0 / np.sqrt(features.var(axis=0, dtype=np.float64).astype(np.float32) + _EPS)
    shape = [features.shape[1], len(rates), int(labels.max()) + 1]
    heads = Heads(paddle.zeros(shape), paddle.zeros(shape[1:]), mean, scale)
    velocities = [paddle.zeros_like(heads.weight), paddle.zeros_like(heads.bias)]
    steps = paddle.to_tensor(rates).reshape([-1, 1])  # [R, 1]
    rng, num_batches = np.random.default_rng(seed), -(-len(labels) // _BATCH)
    for epoch in range(epochs):
        for number, chosen in enumerate(np.array_split(rng.permutation(len(labels)), num_batches)):
            progress = (epoch + number / num_batches) / epochs
            rows = np.sort(chosen)  # ascending, for a mapped file
            standard = heads.standardise(features[rows])
            target = F.one_hot(paddle.to_tensor(labels[rows]), shape[2]).unsqueeze(1)  # [B, 1, K]
            error = (F.softmax(heads.logits(standard), axis=-1) - target) / len(
                chosen
            )  # the loss's gradient, [B, R, K]
            gradients = paddle.matmul(standard, error.flatten(1), transpose_x=True).reshape(shape), error.sum(axis=0)
            for value, velocity, gradient in zip(heads[:2], velocities, gradients, strict=True):
                velocity.scale_(_MOMENTUM).add_(gradient)
                value.subtract_(velocity * steps * (0.5 + 0.5 * np.cos(np.pi * progress)))
    return heads


def hold_out(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of a random tenth of the training images, which chooses settings, and those of the others.

    Raises:
        UserError: if the others are of one class.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(labels))
    count = max(1, round(_HELD_OUT * len(labels)))
    held, fitted = np.sort(order[:count]), np.sort(order[count:])
    if len(np.unique(labels[fitted])) < 2:
        raise UserError("a probe needs training images of at least two classes")
    return held, fitted


def probe_accuracy(train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], seed: int = 0) -> float:
    """Return the top-1 accuracy in percent of a linear classifier on a val split.

    Its learning rate is the best one on a tenth of the training images, which no classifier is fitted to; the val split
    chooses nothing.

    Args:
        train, val: features [N, D] and labels [N].
        seed: of that tenth, and of the order of the others.
    """
    features, labels = train
    held, fitted = hold_out(labels, seed)
    heads = fit_heads(features[fitted], labels[fitted], seed=seed)
    best = int(np.argmax(heads.count_right(features[held], labels[held])))
    return 100.0 * int(heads.count_right(*val)[best]) / len(val[1])
