"""Attentive probes: only pooler and head train, and the result is a classifier for every tool."""

import numpy as np
import paddle
import pytest
from paddle import nn

from errors import UserError
from measures import prediction
from methods import dispatch, load_models
from storage import weight_files
from storage.architecture import Architecture, of_config
from tests.conftest import assert_close
from tools import export, report
from training import engine, loaders

pytestmark = pytest.mark.quick
HAVE_NO_GRADIENT = (
    "key.bias",
    "key_norm.bias",
    "value.bias",
    "value_norm.bias",
    "out.bias",
    "mlp.fc2.bias",
)  # softmax and batch norm undo them
POOLERS = ["ep", "aim", "capi", "vjepa", "cae"]


def settings(kind, *more):
    opts = ["MODEL.TYPE", "ATTENTIVE_PROBE", "MODEL.ENCODER.EMBED_DIM", 64, "PROBE.POOLER", kind]
    return [*opts, "PROBE.QUERIES", 8, "PROBE.HEADS", 4, "TRAIN.BASE_LR", 10.0, *more]


@pytest.fixture
def pretrained(tiny_run):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 1, "MODEL.ENCODER.EMBED_DIM", 64)
    (run.directory / "config.yaml").write_text(run.config.dump())
    dispatch.train_or_evaluate(run)
    return ["MODEL.PRETRAINED", str(run.directory)]


@pytest.mark.parametrize("kind", POOLERS)
def test_only_pooler_and_head_train_and_every_tool_reads_the_result(tiny_run, pretrained, tmp_path, kind):
    run = tiny_run("linearprobe", *settings(kind, *pretrained, "TRAIN.NUM_EPOCHS", 2, "PROBE.NORM", kind == "cae"))
    scores = dispatch.train_or_evaluate(run)
    (run.directory / "config.yaml").write_text(run.config.dump())
    model, config = load_models.load_classifier(run.directory)
    before = weight_files.read(weight_files.resolve(pretrained[1])).tensors
    for name, value in model.state_dict().items():
        if not name.startswith(("pooler.", "classifier.")):
            assert np.array_equal(before[name].read(), value.numpy()), name
    trained = [name for name, value in model.pooler.named_parameters() if not value.stop_gradient]
    fresh = dispatch.build_task(tiny_run("linearprobe", *settings(kind, *pretrained))).model.pooler.state_dict()
    moved = [
        name for name in trained if not np.array_equal(fresh[name].numpy(), model.pooler.state_dict()[name].numpy())
    ]
    assert set(trained) - set(moved) <= {"key.bias", "key_norm.bias"}  # which the softmax does not see
    evaluated = tiny_run(
        "linearprobe",
        *settings(kind, "EVAL", True, "MODEL.PRETRAINED", str(run.directory), "PROBE.NORM", kind == "cae"),
    )
    assert dispatch.train_or_evaluate(evaluated)["loss"] == pytest.approx(scores["loss"], rel=1e-4)
    found = export.main([str(run.directory), "-out", str(tmp_path / "exported"), "-format", "paddle"])
    assert found["paddle"] <= export.TOLERANCE
    (row,) = prediction.predict(prediction.load(run.directory), picture())
    assert sum(row.probabilities) == pytest.approx(1.0, abs=1e-4)
    assert of_config(config, "attentive") == model.architecture == Architecture.from_dict(model.architecture.to_dict())


def picture():
    from PIL import Image

    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8))


@pytest.mark.parametrize("kind", POOLERS)
def test_several_rates_at_once_are_the_probes_of_each(tiny_run, pretrained, kind):
    sgd = [*pretrained, "TRAIN.OPTIMIZER.NAME", "SGD", "DATA.BATCH_SIZE", 64, "TRAIN.NUM_EPOCHS", 1]  # the best one
    rates = [0.25, 1.0]
    run = tiny_run("linearprobe", *settings(kind, *sgd, "TRAIN.LR_SWEEP", rates))
    sweep = dispatch.build_task(run)
    first = [{name: value.numpy() for name, value in head.state_dict().items()} for head in sweep.model.heads]
    scores = engine.fit(sweep, dispatch.build_train_loader(run), loaders.build_eval_loader(run), run)
    alone = []
    for number, rate in enumerate(rates):
        other = tiny_run("linearprobe", *settings(kind, *sgd, "TRAIN.BASE_LR", rate))
        single = dispatch.build_task(other)
        head = nn.Sequential(single.model.pooler, *single.model.classifier)
        for name, value in head.state_dict().items():
            value.set_value(first[number][name])
        alone.append(engine.fit(single, dispatch.build_train_loader(other), loaders.build_eval_loader(other), other))
        for name, value in sweep.model.heads[number].state_dict().items():
            expected = head.state_dict()[name].numpy()
            if name.endswith(HAVE_NO_GRADIENT):
                assert np.abs(value.numpy() - expected).max() < 1e-5
            else:  # sums in another order, over some updates
                assert_close(value.numpy(), expected, 5e-5, name)
        assert scores[f"loss_lr{rate:g}"] == pytest.approx(alone[-1]["loss"], rel=3e-4)
    best = int(np.argmax([scores[f"acc1_lr{rate:g}"] for rate in rates]))
    assert scores["loss"] == pytest.approx(alone[best]["loss"], rel=3e-4)
    chosen, saved = sweep.model.heads[best].state_dict(), load_models.load_classifier(run.directory)[0]
    for name, value in nn.Sequential(saved.pooler, *saved.classifier).state_dict().items():
        assert np.array_equal(value.numpy(), chosen[name].numpy()), name


@pytest.mark.parametrize("kind", ["ep", "cae"])
def test_the_page_shows_where_the_pooler_looks(tiny_run, kind):
    run = tiny_run("linearprobe", *settings(kind, "TRAIN.NUM_EPOCHS", 1, "PROBE.TOKENS", "all"))
    (run.directory / "config.yaml").write_text(run.config.dump())
    dispatch.train_or_evaluate(run)
    page = report.main([str(run.directory)]).read_text()
    assert ("<b>query 8</b>" if kind == "ep" else "<b>head 4</b>") in page
    assert "Where the pooler looks" in page


@pytest.mark.parametrize("kind", POOLERS)
def test_shapes_are_those_of_the_network(tiny_run, kind):
    for more in (["PROBE.TOKENS", "all"], ["PROBE.NORM", True], ["PROBE.D_OUT", 2]):
        model = dispatch.build_task(tiny_run("linearprobe", *settings(kind, *more))).model
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        assert shapes == model.architecture.shapes()


def test_the_pooler_reads_raw_patches_or_what_the_keys_say(tiny_run):
    paddle.seed(0)
    images = paddle.randn([2, 3, 16, 16])
    for tokens in ("patches", "all"):
        for is_normed in (False, True):
            opts = settings("ep", "PROBE.TOKENS", tokens, "PROBE.NORM", is_normed)
            model = dispatch.build_task(tiny_run("linearprobe", *opts)).model
            model.eval()
            read = []
            model.pooler.register_forward_pre_hook(lambda layer, inputs, read=read: read.append(inputs[0]))
            model(images)
            *_, (_, last, _) = model.encoder.walk(model.embed(images))
            last = model.encoder.norm(last) if is_normed else last
            assert (model.encoder.norm is None) != is_normed
            assert_close(read[0].numpy(), (last if tokens == "all" else last[:, 1:]).numpy(), 1e-6)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["PROBE.QUERIES", 7], r"7 queries \(PROBE\.QUERIES\) do not divide the width 64"),
        (["PROBE.POOLER", "aim", "PROBE.HEADS", 5], r"5 heads \(PROBE\.HEADS\) do not divide"),
        (["MODEL.GLOBAL_POOL", True], r"MODEL\.GLOBAL_POOL=True: an attentive probe has a pooler"),
    ],
)
def test_numbers_that_do_not_fit_are_named(tiny_run, more, said):
    with pytest.raises(UserError, match=said):
        dispatch.train_or_evaluate(tiny_run("linearprobe", *settings("ep", *more)))
