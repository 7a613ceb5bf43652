"""The head against an independent one in torch, over three updates of each stage, and its queue by hand."""

import numpy as np
import paddle
import pytest

from layers.heads import JointBatchNorm
from methods.contrastive_tuning import NNCLRHead
from methods.info_nce import info_nce
from tests.conftest import assert_close

DIM, WIDTHS, HIDDEN, QUEUE, BATCH = 12, (16, 16, 8), 20, 40, 10
# Sums over a batch of 10 in another order, through five batch norms: 1e-5 of each tensor's largest value.
RELATIVE = 1e-5
# The predictor's batch norm takes out a shift, so the bias before it has no gradient; what it reads has the mean zero.
ZERO_IN_THEORY = ("projector.7.bias", "projector.7.bias gradient", "target_projector.7.bias", "predictor.1._mean")


def make_head(topk=0, momentum=None, queue=QUEUE) -> NNCLRHead:
    paddle.seed(3)
    head = NNCLRHead(DIM, WIDTHS, HIDDEN, queue, temperature=0.2, topk=topk, momentum=momentum)
    head.train()
    return head


def features(seed: int, batch: int = BATCH) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, DIM)).astype(np.float32) for _ in range(2)]


class TorchHead:
    """The same computation, written down in torch."""

    def __init__(self, head: NNCLRHead):
        torch = pytest.importorskip("torch")
        self.torch, self.topk, self.momentum, self.temperature = torch, head.topk, head.momentum, head.temperature
        self.parts = {"projector": self._mlp((DIM, *WIDTHS), True), "predictor": self._mlp((8, HIDDEN, 8), False)}
        if head.momentum is not None:
            self.parts["target_projector"] = self._mlp((DIM, *WIDTHS), True)
        state = {name: value.numpy() for name, value in head.state_dict().items()}
        for part, network in self.parts.items():
            own = network.state_dict()
            for name in own:
                if name.endswith("num_batches_tracked"):
                    continue
                ours = name.replace("running_mean", "_mean").replace("running_var", "_variance")
                value = state[f"{part}.{ours}"]
                own[name].copy_(torch.from_numpy(value.T.copy() if value.ndim == 2 else value))
        self.queue, self.queue_id = torch.from_numpy(state["queue"].copy()), torch.from_numpy(state["queue_id"].copy())
        self.queue_y, self.place = torch.from_numpy(state["queue_y"].copy()), int(state["queue_ptr"][0])

    def _mlp(self, widths, norm_at_end):
        nn, layers = self.torch.nn, []
        for index in range(len(widths) - 1):
            layers.append(nn.Linear(widths[index], widths[index + 1], bias=False))
            last = index == len(widths) - 2
            layers += [nn.BatchNorm1d(widths[index + 1])] if norm_at_end or not last else []
            layers += [] if last else [nn.ReLU()]
        return nn.Sequential(*layers)

    def step(self, views, ids, labels, draws):
        torch, functional = self.torch, self.torch.nn.functional
        losses, unit, predictions, neighbours, places = [], [], [], [], []
        for view, draw in zip(map(torch.from_numpy, views), draws, strict=True):
            projected = self.parts["projector"](view)
            with torch.no_grad():
                target = self.parts["target_projector"](view) if self.momentum is not None else projected
                unit.append(functional.normalize(target.detach()))
                similarity = unit[-1] @ self.queue.T
                similarity[torch.from_numpy(ids)[:, None] == self.queue_id[None]] = -1.0
                order = similarity.argsort(dim=1, descending=True)
                rank = torch.from_numpy(draw) if self.topk else torch.zeros(len(ids), dtype=torch.int64)
                places.append(order.gather(1, rank[:, None])[:, 0])
                neighbours.append(self.queue[places[-1]])
            predictions.append(functional.normalize(self.parts["predictor"](projected)))
        for own, other in ((0, 1), (1, 0)):
            logits = neighbours[other] @ predictions[own].T / self.temperature
            losses.append(functional.cross_entropy(logits, torch.arange(len(ids))))
        loss = (losses[0] + losses[1]) / 2
        accuracy = (self.queue_y[places[0]] == torch.from_numpy(labels)).float().mean()
        for network in self.parts.values():
            network.zero_grad()
        loss.backward()
        for row, image, label in zip(unit[0], ids, labels, strict=True):
            self.queue[self.place], self.queue_id[self.place] = row, int(image)
            self.queue_y[self.place], self.place = int(label), (self.place + 1) % len(self.queue)
        return loss.item(), [part.item() for part in losses], accuracy.item()

    def arrays(self):
        """Return parameters, gradients and statistics under our names."""
        found = {}
        for part, network in self.parts.items():
            for name, value in network.named_parameters():
                array = value.detach().numpy()
                found[f"{part}.{name}"] = array.T if array.ndim == 2 else array
                if value.grad is not None:
                    gradient = value.grad.numpy()
                    found[f"{part}.{name} gradient"] = gradient.T if gradient.ndim == 2 else gradient
            for name, value in network.named_buffers():
                if "running" in name:
                    ours = name.replace("running_mean", "_mean").replace("running_var", "_variance")
                    found[f"{part}.{ours}"] = value.numpy()
        return found


def our_arrays(head: NNCLRHead) -> dict[str, np.ndarray]:
    found = {name: value.numpy() for name, value in head.state_dict().items()}
    return found | {f"{n} gradient": p.grad.numpy() for n, p in head.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("topk", "momentum"), [(0, None), (5, 0.9)])
def test_three_updates_are_those_of_torch(topk, momentum):
    head = make_head(topk, momentum)
    other = TorchHead(head)
    torch, rng, rate = other.torch, np.random.default_rng(0), 0.05
    for step in range(3):
        views, ids = features(step), rng.permutation(15)[:BATCH].astype(np.int64)  # some images come again
        labels, draws = ids % 3, rng.integers(0, max(topk, 1), (2, BATCH))
        output = head(
            *map(paddle.to_tensor, views), paddle.to_tensor(ids), paddle.to_tensor(labels), paddle.to_tensor(draws)
        )
        output.loss.backward()
        loss, parts, accuracy = other.step(views, ids, labels, draws)
        assert output.loss.item() == pytest.approx(loss, rel=RELATIVE)
        assert [part.item() for part in output.loss_parts] == pytest.approx(parts, rel=RELATIVE)
        assert output.nn_accuracy.item() == pytest.approx(accuracy, abs=1e-6)
        ours, theirs = our_arrays(head), other.arrays()
        for name, expected in theirs.items():
            if name in ZERO_IN_THEORY:
                assert np.abs(ours[name] - expected).max() < 1e-6, name
            else:
                assert_close(ours[name], expected, RELATIVE, name)
        assert_close(ours["queue"], other.queue.numpy(), RELATIVE, "queue")
        assert ours["queue_id"].tolist() == other.queue_id.tolist()
        assert ours["queue_y"].tolist() == other.queue_y.tolist()
        assert ours["queue_ptr"].tolist() == [other.place]
        with paddle.no_grad():
            for parameter in head.parameters():
                if parameter.grad is not None:
                    parameter.set_value(parameter - rate * parameter.grad)
        head.clear_gradients()
        head.update_target()
        with torch.no_grad():
            for part in ("projector", "predictor"):
                for value in other.parts[part].parameters():
                    value -= rate * value.grad
            if momentum is not None:
                own = dict(other.parts["projector"].named_parameters())
                for name, value in other.parts["target_projector"].named_parameters():
                    value.copy_(momentum * value + (1 - momentum) * own[name])
                buffers = dict(other.parts["projector"].named_buffers())
                for name, value in other.parts["target_projector"].named_buffers():
                    value.copy_(buffers[name])


@pytest.mark.quick
def test_names_are_those_of_the_contract():
    names = set(make_head(momentum=0.9).state_dict())
    for part in ("projector", "target_projector"):
        assert {f"{part}.{n}.weight" for n in (0, 1, 3, 4, 6, 7)} | {f"{part}.{n}.bias" for n in (1, 4, 7)} <= names
    assert {"predictor.0.weight", "predictor.1.weight", "predictor.3.weight"} <= names
    assert {"queue", "queue_y", "queue_id", "queue_ptr"} <= names
    assert not [name for name in make_head().state_dict() if name.startswith("target")]
    assert sum(p.size for p in NNCLRHead(768, queue_size=4).parameters()) == 6_300_160 + 2_105_344  # ViT-B's


@pytest.mark.quick
@pytest.mark.parametrize(("queue", "batch"), [(40, 10), (7, 3), (4, 6)])
def test_the_queue_is_first_in_first_out_whatever_the_batch(queue, batch):
    head, expected = make_head(queue=queue), [-1] * queue
    place = 0
    for step in range(5):
        ids = np.arange(step * batch, (step + 1) * batch)
        head(*map(paddle.to_tensor, features(step, batch)), paddle.to_tensor(ids))
        for image in ids.tolist():
            expected[place], place = image, (place + 1) % queue
        assert head.queue_id.tolist() == expected
        assert head.queue_ptr.tolist() == [place]
        assert np.allclose(np.linalg.norm(head.queue.numpy(), axis=1), 1.0, atol=1e-5)


@pytest.mark.quick
def test_an_image_is_not_its_own_neighbour_and_evaluation_keeps_the_queue():
    head = make_head()
    views, ids = [paddle.to_tensor(view) for view in features(0)], paddle.arange(BATCH, dtype="int64")
    head(views[0], views[0], ids)
    head.eval()
    before = head.queue.numpy()
    projections = paddle.nn.functional.normalize(head.projector(views[0]))
    own = head._find(projections, paddle.full_like(ids, 99), None)
    others = head._find(projections, ids, None)
    assert (paddle.gather(head.queue_id, others) != ids).all()
    assert (own != others).any()
    head(views[0], views[1], ids)
    assert np.array_equal(head.queue.numpy(), before)


@pytest.mark.quick
def test_neighbours_are_drawn_evenly_among_the_nearest():
    """5 of 40 places, 400 draws for each of 10 images; within four deviations of 4,000 / 5."""
    head = make_head(topk=5)
    drawn = np.random.default_rng(1).standard_normal((BATCH, 8)).astype("float32")
    projections = paddle.nn.functional.normalize(paddle.to_tensor(drawn))
    ids = paddle.arange(BATCH, dtype="int64") + 1000
    order = np.argsort(-(projections.numpy() @ head.queue.numpy().T), axis=1)
    paddle.seed(0)
    counts = np.zeros(5)
    for _ in range(400):
        places = head._find(projections, ids, None).numpy()
        for row, place in enumerate(places):
            counts[order[row].tolist().index(place)] += 1
    assert np.abs(counts - 800).max() < 4 * np.sqrt(4000 * 0.2 * 0.8)


@pytest.mark.quick
def test_the_averaged_projector_follows():
    head = make_head(momentum=0.75)
    start = head.projector[0].weight.numpy()
    with paddle.no_grad():
        head.projector[0].weight.set_value(head.projector[0].weight + 1.0)
        head.projector[1]._mean.set_value(head.projector[1]._mean + 3.0)
    head.update_target()
    assert_close(head.target_projector[0].weight.numpy(), start + 0.25, 1e-6)
    assert (head.target_projector[1]._mean == 3.0).all()
    assert all(parameter.stop_gradient for parameter in head.target_projector.parameters())


@pytest.mark.quick
def test_joint_batch_norm_keeps_torchs_statistics():
    norm, values = JointBatchNorm(3), np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    found = norm(paddle.to_tensor(values)).numpy()
    assert_close(found, (values - values.mean(0)) / np.sqrt(values.var(0) + 1e-5), 1e-6)
    assert_close(norm._mean.numpy(), 0.1 * values.mean(0), 1e-6)
    assert_close(norm._variance.numpy(), 0.9 + 0.1 * values.var(0, ddof=1), 1e-6)
    norm.eval()
    expected = (values - 0.1 * values.mean(0)) / np.sqrt(0.9 + 0.1 * values.var(0, ddof=1) + 1e-5)
    assert_close(norm(paddle.to_tensor(values)).numpy(), expected, 1e-6)
    norm.train()
    with pytest.raises(ValueError, match="a batch of one image cannot be normalised"):
        norm(paddle.ones([1, 3]))


@pytest.mark.quick
def test_info_nce_by_hand():
    rng = np.random.default_rng(0)
    anchors, candidates = (rng.standard_normal((5, 4)).astype(np.float32) for _ in range(2))
    logits = anchors.astype(np.float64) @ candidates.T / 0.3
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - np.diag(logits))
    assert info_nce(paddle.to_tensor(anchors), paddle.to_tensor(candidates), 0.3).item() == pytest.approx(
        expected, rel=1e-5
    )
