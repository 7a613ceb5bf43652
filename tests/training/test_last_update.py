"""The last, smaller update of an epoch: every image weighs the same; and what a batch of one image does."""

import itertools

import numpy as np
import paddle
import pytest

from config import get_config
from errors import UserError
from launch.stop import StopRequest
from methods import dispatch
from methods.classifier import soft_cross_entropy
from optim import LARS, build_optimizer
from pipeline import loading, transforms
from pipeline.mixup import smooth_one_hot
from pipeline.samplers import TrainSampler
from tests.conftest import assert_close
from training import loaders
from training.engine import Training
from training.plan import check_micro_steps, make_plan
from transformer import build_transformer

pytestmark = pytest.mark.quick


def make_training(run, num_images, batch, accum=1):
    """Return the loop of a run over the first images of its data set."""
    source = loaders.open_split(run, "train", "label")
    source.images, source.labels = source.images[:num_images], source.labels[:num_images]
    loader = loading.Loader(source, transforms.eval_transform(run.config), TrainSampler(num_images, batch, accum))
    task = dispatch.build_task(run)
    training = Training(task, loader, None, run, make_plan(run.config, loader), StopRequest(print))
    training.start()
    return training


def test_an_update_counts_as_its_images_do():
    sampler = TrainSampler(21, 4, 2)
    assert [sampler.update_share(update) for update in range(3)] == [1.0, 1.0, 5 / 8]
    assert TrainSampler(5, 8).update_share(0) == 1.0  # the whole epoch is one update
    assert [TrainSampler(16, 8).update_share(update) for update in range(2)] == [1.0, 1.0]


@pytest.mark.parametrize(("batch", "accum"), [(8, 1), (2, 4)])
def test_the_gradient_of_a_small_update_is_the_sum_over_a_full_batch(tiny_run, monkeypatch, batch, accum):
    """With 10 images and updates of 8, the second one's gradient is the mean over its 2 images, times 2 / 8."""
    run = tiny_run("finetune", "TRAIN.MIXUP_PROB", 0.0, "MODEL.DROPPATH", 0.0, "TRAIN.RANDOM_ERASE_PROB", 0.0)
    training = make_training(run, 10, batch, accum)
    seen = {}
    monkeypatch.setattr(training.guard, "check", lambda *args: seen.update(gradients(training.task.model)) or False)
    training.update(training.train_loader.epoch(0, 1), 1, 0.0)
    model = training.task.model
    model.clear_gradients()
    sampler = training.train_loader.sampler
    indices = sampler.indices(1, 0)
    source, transform = training.train_loader.source, transforms.eval_transform(run.config)
    images = paddle.to_tensor(np.stack([transform(source.image(index), None) for index in indices]))
    labels = paddle.to_tensor(source.labels[indices])
    soft_cross_entropy(model(images), smooth_one_hot(labels, 4, 0.1)).backward()
    assert len(indices) == 2
    for name, value in gradients(model).items():
        expected = value * (2 / 8)
        assert np.abs(seen[name] - expected).max() <= 1e-5 * np.abs(expected).max() + 1e-8, name  # zeros: a key's bias


def gradients(model):
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def test_clipping_scales_the_gradients_of_all_groups_by_one_factor(tiny_run, monkeypatch):
    """Layer decay makes many parameter groups; their gradients together have the norm TRAIN.GRAD_CLIP."""
    found = []
    for clip in (None, 0.01):
        run = tiny_run("finetune", "TRAIN.GRAD_CLIP", clip)
        training = make_training(run, 8, 8)
        optimizer = training.task.optimizer
        assert len(getattr(optimizer, "_parts", [optimizer])[0]._param_groups) > 4
        model = training.task.model
        monkeypatch.setattr(training.guard, "check", lambda *args, model=model: found.append(gradients(model)))
        training.update(training.train_loader.epoch(0, 0), 0, 0.0)
    plain, clipped = found
    norm = np.sqrt(sum(np.sum(value.astype(np.float64) ** 2) for value in plain.values()))
    assert norm > 0.02
    for name, value in plain.items():
        expected = value * (0.01 / norm)
        assert np.abs(clipped[name] - expected).max() <= 1e-4 * np.abs(expected).max() + 1e-9, name  # float32 sums


def test_lars_takes_a_small_step_for_a_small_update():
    """Its trust ratio would make any gradient one of the same length."""
    rng, share = np.random.default_rng(0), 0.25
    start, gradient = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    parameter = paddle.create_parameter([3, 4], "float32")
    parameter.set_value(paddle.to_tensor(start))
    optimizer = LARS(2.0, [parameter], weight_decay=0.01)
    optimizer.gradient_share = share
    (parameter * paddle.to_tensor(gradient * share)).sum().backward()
    optimizer.step()
    decayed = gradient.astype(np.float64) + 0.01 * start
    step = 0.001 * np.linalg.norm(start) / np.linalg.norm(decayed) * decayed
    assert_close(parameter.numpy(), start - 2.0 * share * step, 1e-6)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_loop_tells_lars_the_share(tiny_run, monkeypatch, sharded):
    training = make_training(tiny_run("linearprobe", "TRAIN.SHARDING", "optimizer" if sharded else "none"), 10, 8)
    steps = []
    for update in range(2):
        before = training.task.model.head.weight.numpy().copy()
        training.update(training.train_loader.epoch(0, update), update, 1.0)
        steps.append(np.linalg.norm(training.task.model.head.weight.numpy() - before))
        training.task.optimizer.gradient_share = 1.0
        for velocity in accumulators(training.task.optimizer):
            velocity.set_value(paddle.zeros_like(velocity))
    assert steps[1] / steps[0] == pytest.approx(2 / 8, rel=1e-2)  # for a weight that has moved


def accumulators(optimizer):
    inner = getattr(optimizer, "_optimizer", optimizer)
    return list(inner._accumulators["velocity"].values())


def test_adamw_keeps_its_own_form(tiny_run):
    optimizer = build_optimizer("AdamW", [{"params": [paddle.create_parameter([2], "float32")], "weight_decay": 0.0}])
    assert not hasattr(optimizer, "gradient_share")


# ---- a batch of one image in front of a batch norm


@pytest.mark.parametrize(("num_images", "batch", "accum"), [(9, 8, 1), (17, 4, 2), (3, 1, 3)])
def test_a_micro_step_of_one_image_is_refused_before_a_probe_starts(num_images, batch, accum):
    with pytest.raises(UserError, match="a micro-step of one image.*choose another -batch_size.*DROP_LAST True"):
        check_micro_steps(TrainSampler(num_images, batch, accum), 2)


@pytest.mark.parametrize(("num_images", "batch", "options"), [(9, 8, {"drop_last": True}), (10, 8, {}), (8, 8, {})])
def test_other_micro_steps_pass(num_images, batch, options):
    check_micro_steps(TrainSampler(num_images, batch, **options), 2)


def test_every_rank_is_looked_at():
    with pytest.raises(UserError, match="micro-step of one image"):
        check_micro_steps(TrainSampler(19, 8, rank=0, world_size=2), 2)  # 16, then 2 and 1


def test_a_probe_refuses_one_image_in_training_only(tiny_config):
    model, image = build_transformer(tiny_config("linearprobe")), paddle.rand([1, 3, 16, 16])
    with pytest.raises(UserError, match="a batch of one image cannot be normalised"):
        model(image)
    model.eval()
    assert model(image).shape == [1, 4]


# ---- averaged weights, and numbers that are not finite


class SkippingScaler:
    """A loss scaler that finds an infinite gradient where it is told to; Paddle's own is off on CPU."""

    def __init__(self, training):
        self.training = training

    def is_enable(self):
        return True

    def scale(self, loss):
        return loss * (float("inf") if self.training.step == 1 else 1.0)

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        if self.training.step != 1:
            optimizer.step()

    def update(self):
        pass


def test_the_average_stays_where_the_scaler_leaves_an_update_out(tiny_run):
    training = make_training(tiny_run("pretrain", "TRAIN.EMA_DECAY", 0.9), 32, 8)
    training.scaler = SkippingScaler(training)
    training.guard._has_scaler = True
    batches, averages = training.train_loader.epoch(0), []
    for update in range(3):
        training.update(batches, update, 1e-2)
        training.step += 1
        averages.append({name: value.numpy().copy() for name, value in training.task.ema.state_dict().items()})
    same = [all(np.array_equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(averages)]
    assert same == [True, False]
    assert all(np.isfinite(value).all() for value in averages[-1].values())


def test_official_recipes_drop_the_last_images_and_others_do_not():
    for name in ("base_patch16_224_pretrain", "tiny_patch16_224_finetune", "huge_patch14_224_linearprobe"):
        assert get_config(f"configs/vit_{name}.yaml").DATA.DROP_LAST
    assert not get_config().DATA.DROP_LAST
    assert not get_config("configs/vit_micro_patch4_32_finetune.yaml").DATA.DROP_LAST
