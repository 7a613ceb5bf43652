"""Weakly supervised pretraining: the loss against NumPy, and runs on images with several labels."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

import main_multi_gpu_finetune
import main_multi_gpu_pretrain
from config import get_config
from errors import UserError
from methods import weak_labels
from methods.weak_labels import many_label_loss
from pipeline.sources import ArrayImages
from tests.conftest import TINY, assert_close
from tests.helpers import script_runs

RELATIVE = 1e-6  # float32 against float64, sums of a few dozen numbers
OPTS = [*TINY, "MODEL.TYPE", "WEAK_LABELS", "MODEL.NUM_CLASSES", 6, "DATA.DATASET", "lists", "DATA.DROP_LAST", True]
OPTS += ["DATA.BATCH_SIZE", 16, "TRAIN.NUM_EPOCHS", 3, "REPORT_FREQ", 1, "SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9]
LABELS = np.array([[0, 3, -1], [2, -1, -1], [-1, -1, -1], [4, 4, 1]])


def expected(logits: np.ndarray, kind: str) -> tuple[float, np.ndarray]:
    """Return loss and gradient in float64, with the dense target that the project does without."""
    logits = logits.astype(np.float64)
    target = np.zeros_like(logits)
    for row, labels in zip(target, LABELS, strict=True):
        row[[label for label in set(labels.tolist()) if label >= 0]] = 1.0
    has_label = (target.sum(axis=1) > 0)[:, None]
    if kind == "bce":
        losses = np.logaddexp(0, logits) - target * logits
        share = has_label / logits.size
        return (losses * share).sum(), (np.exp(-np.logaddexp(0, -logits)) - target) * share
    target /= target.sum(axis=1, keepdims=True).clip(1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -(target * log_probs).sum() / len(logits), (np.exp(log_probs) - target) * has_label / len(logits)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["softmax", "bce"])
@pytest.mark.parametrize(("scale", "relative"), [(1.0, RELATIVE), (1e4, 1e-3)])
def test_loss_and_gradient(kind, scale, relative):
    """Of several labels, one, none, and one label twice; logits of 1e4 have three digits behind the point."""
    values = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32) * scale
    logits = paddle.to_tensor(values, stop_gradient=False)
    loss = many_label_loss(logits, paddle.to_tensor(LABELS), kind)
    loss.backward()
    wanted, gradient = expected(values, kind)
    assert np.isfinite(loss.item())
    assert_close(loss.numpy(), wanted, relative)
    assert_close(logits.grad.numpy(), gradient, relative)
    assert (logits.grad.numpy()[2] == 0).all()


@pytest.mark.quick
def test_single_labels_are_the_plain_case():
    logits = paddle.randn([5, 7])
    labels = paddle.to_tensor([0, 6, 3, 3, 1])
    plain = paddle.nn.functional.cross_entropy(logits, labels)
    assert_close(many_label_loss(logits, labels).numpy(), plain.numpy(), RELATIVE)
    assert many_label_loss(logits, labels.unsqueeze(1)).item() == many_label_loss(logits, labels).item()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Return a data set of 40 images with one to three labels, and one image without any."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(41):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(root / f"{number}.png")
        labels = rng.choice(6, rng.integers(1, 4), replace=False).tolist()
        lines.append(json.dumps({"image": f"{number}.png", "labels": labels if number != 7 else []}))
    (root / "train.jsonl").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, labelled):
    """Return the directory of a run of six updates."""
    folder = tmp_path_factory.mktemp("wsp")
    return script_runs.train(main_multi_gpu_pretrain.main, folder, "run", [*OPTS, "DATA.DATA_PATH", str(labelled)])


def test_a_stopped_run_goes_on_bit_identically(undisturbed, tmp_path, labelled):
    script_runs.stop_after_step(undisturbed, tmp_path)
    settings = [*OPTS, "DATA.DATA_PATH", str(labelled)]
    flags = ("-resume", str(tmp_path / "again"))
    script_runs.assert_same(
        script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "again", settings, *flags), undisturbed
    )


def test_two_ranks_equal_the_joint_batch(undisturbed, labelled):
    settings = [*OPTS, "DATA.DATA_PATH", str(labelled), "DATA.BATCH_SIZE", 8]
    script_runs.compare_two_ranks(undisturbed, settings)


def test_its_encoder_is_finetuned(undisturbed, tmp_path, tiny_yaml):
    cfg = tiny_yaml("finetune", "TRAIN.NUM_EPOCHS", 1, "MODEL.GLOBAL_POOL", False)
    scores = main_multi_gpu_finetune.main(["-cfg", cfg, "-pretrained", str(undisturbed), "-output", str(tmp_path)])
    assert 0 <= scores["acc1"] <= 100


# ---- balance ------------------------------------------------------------------------------------


def make_config(*opts):
    return get_config(None, [*OPTS, *opts])


@pytest.mark.quick
def test_images_of_rare_labels_are_repeated():
    labels = np.array([0] * 90 + [1] * 10)
    source = ArrayImages(np.zeros((100, 2, 2, 3), np.uint8), labels, "test")
    assert weak_labels.balanced(make_config(), source) is source
    even = weak_labels.balanced(make_config("WSP.BALANCE", 1.0), source)
    assert np.bincount(even.labels).tolist() == [90, 50]  # 50 images per label in the mean
    root = np.bincount(weak_labels.balanced(make_config("WSP.BALANCE", 0.5), source).labels)
    assert root[0] == 90
    assert 20 <= root[1] <= 30  # 10 x sqrt(5) = 22.4, with fractions drawn
    few = weak_labels.balanced(make_config("WSP.BALANCE", 1.0, "WSP.MOST_REPEATS", 2), source)
    assert np.bincount(few.labels).tolist() == [90, 20]
    assert np.array_equal(even.indices, weak_labels.balanced(make_config("WSP.BALANCE", 1.0), source).indices)


@pytest.mark.quick
def test_balance_is_refused_without_labels_in_memory():
    class Shards:
        has_labels_in_memory = False

    with pytest.raises(UserError, match="all labels at once"):
        weak_labels.balanced(make_config("WSP.BALANCE", 0.5), Shards())
