"""Segmentation: head and loss against torch, scores against scikit-learn, windows, crops, and real runs."""

import itertools

import numpy as np
import paddle
import pytest
from numpy.testing import assert_allclose
from PIL import Image
from sklearn.metrics import jaccard_score

import main_multi_gpu_finetune
import main_multi_gpu_pretrain
from config import get_config
from errors import UserError
from layers import cross_entropy
from methods import dispatch, load_models, segmentation_scores
from methods.segmentation import pixel_cross_entropy
from methods.segmenter import segment, upsample, window_starts
from pages import segments
from pipeline import mask_augment, scenes
from pipeline.masks import IGNORED
from storage import weight_files
from storage.architecture import Architecture, of_config
from tests.conftest import TINY
from tests.helpers import script_runs
from tests.helpers.browser import BROWSER, check_page
from tools import report

pytestmark = pytest.mark.quick
SEG = [*TINY, "MODEL.TYPE", "SEGMENTATION", "DATA.DATASET", "scenes", "MODEL.NUM_CLASSES", 8, "DATA.IMAGE_SIZE", 16]
SEG += ["MODEL.GLOBAL_POOL", False, "TRAIN.BASE_LR", 0.1, "DATA.BATCH_SIZE", 4, "DATA.DROP_LAST", True]


def small(*more):
    """Return a configuration whose data set is a few scenes."""
    return get_config(None, [*SEG, *more])


@pytest.fixture
def few(monkeypatch):
    """Make the generated scenes few."""
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 24, "val": 5})


@pytest.mark.parametrize("layers", [[-1], [1, 2], [2, 1]])
def test_head_and_loss_against_torch(tiny_run, layers):
    torch = pytest.importorskip("torch")
    task = dispatch.build_task(tiny_run("pretrain", *SEG, "SEG.LAYERS", layers, "DATA.IMAGE_SIZE", [16, 24]))
    model, rng = task.model, np.random.default_rng(0)
    images = rng.normal(0, 1, (3, 3, 16, 24)).astype(np.float32)
    labels = rng.integers(-1, 8, (3, 16, 24)).astype(np.int16)
    features = model.patch_features(paddle.to_tensor(images)).numpy()
    assert features.shape == (3, 24, 32 * len(layers))
    norm = torch.nn.BatchNorm1d(features.shape[-1], affine=False)
    linear = torch.nn.Linear(features.shape[-1], 8)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(model.head.weight.numpy().T))
        linear.bias.copy_(torch.from_numpy(model.head.bias.numpy()))
    optimizer = torch.optim.SGD(linear.parameters(), 0.5)
    ours = paddle.optimizer.SGD(0.5, parameters=[model.head.weight, model.head.bias])
    for _ in range(3):
        logits = linear(norm(torch.from_numpy(features).flatten(0, 1))).reshape(3, 24, 8).permute(0, 2, 1)
        logits = logits.reshape(3, 8, 4, 6)
        expected = torch.nn.functional.interpolate(logits, (16, 24), mode="bilinear", align_corners=False)
        loss = torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels).long(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        found = upsample(model(paddle.to_tensor(images)), (16, 24))
        own = pixel_cross_entropy(found, paddle.to_tensor(labels))
        assert_allclose(found.numpy(), expected.detach().numpy(), atol=1e-5)
        assert float(own) == pytest.approx(float(loss), rel=1e-5)
        own.backward()
        assert_allclose(model.head.weight.grad.numpy().T, linear.weight.grad.numpy(), atol=1e-5)
        assert_allclose(model.head.bias.grad.numpy(), linear.bias.grad.numpy(), atol=1e-5)
        ours.step()
        ours.clear_grad()
        optimizer.step()
    assert_allclose(model.classifier[0]._variance.numpy(), norm.running_var.numpy(), atol=1e-5)
    model.eval()
    norm.eval()
    expected = (
        linear(norm(torch.from_numpy(features).flatten(0, 1))).reshape(3, 24, 8).permute(0, 2, 1).reshape(3, 8, 4, 6)
    )
    assert_allclose(model(paddle.to_tensor(images)).numpy(), expected.detach().numpy(), atol=1e-5)


def test_a_batch_without_any_class_has_no_loss():
    logits = paddle.randn([2, 3, 4, 4])
    logits.stop_gradient = False
    loss = pixel_cross_entropy(logits, paddle.full([2, 4, 4], -1, "int16"))
    loss.backward()
    assert float(loss) == 0.0
    assert not logits.grad.numpy().any()


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    truth, predicted = rng.integers(-1, 6, (4, 30, 30)), rng.integers(0, 6, (4, 30, 30))
    truth[truth == 2] = 5  # 2 is predicted only
    truth[truth == 4] = 0
    predicted[predicted == 4] = 1  # 4 is nowhere
    counts = sum(segmentation_scores.confusion(a, b, 6) for a, b in zip(truth, predicted, strict=True))
    assert np.array_equal(counts, segmentation_scores.confusion(truth, predicted, 6)), "batches do not matter"
    valid = truth >= 0
    expected = jaccard_score(truth[valid], predicted[valid], average="macro")  # labels that are in either
    found = segmentation_scores.means(counts)
    assert found["miou"] == pytest.approx(100 * expected, abs=1e-9)
    assert found["aacc"] == pytest.approx(100 * (truth == predicted)[valid].mean(), abs=1e-9)
    recalls = [(predicted[truth == label] == label).mean() for label in (0, 1, 3, 5)]
    assert found["macc"] == pytest.approx(100 * np.mean(recalls), abs=1e-9)
    assert np.isnan(segmentation_scores.iou_by_class(counts)[4])
    assert segmentation_scores.iou_by_class(counts)[2] == 0.0


@pytest.mark.parametrize(("size", "window", "stride"), [(16, 16, 10), (17, 16, 10), (40, 16, 11), (683, 512, 341)])
def test_windows_cover_all_and_end_at_the_end(size, window, stride):
    starts = window_starts(size, window, stride)
    assert starts[0] == 0
    assert starts[-1] == size - window
    assert all(0 < after - before <= stride for before, after in itertools.pairwise(starts))


def test_logits_are_the_mean_over_windows():
    image = np.random.default_rng(0).normal(size=(2, 21, 30)).astype(np.float32)
    model = lambda crops: crops * 2.0 + crops.mean(axis=[2, 3], keepdim=True)
    found = segment(model, paddle.to_tensor(image), (16, 16), 0.5).numpy()
    total, counts = np.zeros_like(image), np.zeros_like(image)
    for top in (0, 5):
        for left in (0, 8, 14):
            crop = image[:, top : top + 16, left : left + 16]
            total[:, top : top + 16, left : left + 16] += crop * 2 + crop.mean(axis=(1, 2), keepdims=True)
            counts[:, top : top + 16, left : left + 16] += 1
    assert_allclose(found, total / counts, atol=1e-6)
    constant = segment(lambda crops: crops * 0 + 3.0, paddle.to_tensor(image), (16, 16), 0.3).numpy()
    assert_allclose(constant, np.full_like(image, 3.0), atol=1e-6)


def test_image_and_mask_are_cut_and_mirrored_together():
    labels = np.random.default_rng(0).integers(0, 5, (20, 33)).astype(np.int16)
    picture = Image.fromarray(np.repeat(labels[..., None] * 50, 3, axis=-1).astype(np.uint8))
    view = mask_augment.train_transform(small("SEG.SCALE", [1.25, 1.25])).views[0]
    flips = set()
    for seed in range(20):
        pixels, cut = view((picture, labels), np.random.default_rng(seed))
        assert pixels.shape == (16, 16, 3)
        assert np.array_equal(pixels[..., 0], cut * 50), "at this factor nothing is resized"
        places = [
            is_flipped
            for is_flipped in (False, True)
            for top in range(5)
            for left in range(18)
            if np.array_equal((cut[:, ::-1] if is_flipped else cut), labels[top : top + 16, left : left + 16])
        ]
        assert len(places) == 1
        flips |= set(places)
    assert flips == {False, True}
    small_view = mask_augment.train_transform(small("SEG.SCALE", [0.5, 0.5])).views[0]
    pixels, cut = small_view((picture, labels), np.random.default_rng(0))
    padded = cut == IGNORED
    assert padded.sum() == 16 * 16 - 8 * 13
    assert len(np.unique(pixels[padded], axis=0)) == 1, "the mean colour"


def test_a_crop_of_one_class_is_drawn_again():
    labels = np.zeros((16, 64), np.int16)
    labels[:, 56:] = 1
    for most_share, share in ((0.75, 0.66), (1.0, 0.52)):  # 5 of 49 places have enough of both, 8 have both at all
        rngs = [np.random.default_rng(seed) for seed in range(400)]
        lefts = np.array([mask_augment.draw_crop(labels, (16, 16), most_share, rng)[1] for rng in rngs])
        assert (lefts >= 44).mean() == pytest.approx(share, abs=0.1)
    full = np.full((16, 64), IGNORED, np.int16)
    assert mask_augment.draw_crop(full, (16, 16), 0.75, np.random.default_rng(0))[0] == 0


@pytest.mark.usefixtures("few")
def test_a_frozen_encoder_stays_and_the_head_is_evaluated_alone(tiny_run, tmp_path):
    mae = [*TINY, "MODEL.TYPE", "PRETRAIN", "DATA.DATASET", "scenes", "TRAIN.NUM_EPOCHS", 1]
    encoder = script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "mae", mae)
    settings, flags = [*SEG, "TRAIN.NUM_EPOCHS", 2], ["-pretrained", str(encoder)]
    run = script_runs.train(main_multi_gpu_finetune.main, tmp_path, "seg", settings, *flags)
    before = weight_files.read(weight_files.resolve(encoder)).tensors
    after = weight_files.read(weight_files.resolve(run)).tensors
    for name, value in after.items():
        if not name.startswith("classifier."):
            assert np.array_equal(before[name].read(), value.read()), name
    assert after["classifier.1.weight"].read().any()
    log = (run / "log.txt").read_text()
    assert "val: 5 generated scenes with masks of 8 classes" in log
    first = script_runs.write_config(tmp_path, "again", SEG)
    flags = ["-eval", "-pretrained", str(run), "-output", str(tmp_path)]
    scores = main_multi_gpu_finetune.main(["-cfg", str(first), *flags])
    assert f"miou {scores['miou']:.3f}" in log
    config = get_config(run / "config.yaml")
    network = dispatch.build_task(tiny_run("pretrain", *SEG)).network
    assert of_config(config, "segmenter") == network.architecture
    assert Architecture.from_dict(network.architecture.to_dict()) == network.architecture
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == network.architecture.shapes()
    features = load_models.load_encoder(run)[0](paddle.zeros([1, 3, 16, 16]))
    assert features.shape == [1, 32]


@pytest.mark.usefixtures("few")
def test_a_stopped_run_is_bit_identical(tmp_path):
    settings = [*SEG, "SEG.FREEZE", False, "SEG.LAYERS", [1, 2], "TRAIN.NUM_EPOCHS", 2, "TRAIN.LAYER_DECAY", 0.75]
    settings += ["SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9, "TRAIN.OPTIMIZER.NAME", "SGD", "TRAIN.BASE_LR", 0.5]
    run = script_runs.train(main_multi_gpu_finetune.main, tmp_path, "whole", settings)
    script_runs.stop_after_step(run, tmp_path)
    script_runs.train(main_multi_gpu_finetune.main, tmp_path, "again", settings, "-resume", str(tmp_path / "again"))
    script_runs.assert_same(tmp_path / "again", run)


def test_two_ranks_are_one(tmp_path):
    for split, count in (("train", 8), ("val", 3)):
        for index in range(count):
            pixels, labels = scenes.draw_scene(0, index)
            labels[: 8 * index] = 255  # so that ranks have other numbers of pixels
            for kind, array in (("images", pixels), ("masks", labels.astype(np.uint8))):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / split / kind / f"{index}.png")
    settings = [*SEG, "DATA.DATASET", "masks", "DATA.DATA_PATH", str(tmp_path), "SEG.FREEZE", False]
    settings += ["TRAIN.LAYER_DECAY", 0.75, "SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9, "TRAIN.NUM_EPOCHS", 3]
    settings += ["TRAIN.OPTIMIZER.NAME", "SGD", "TRAIN.BASE_LR", 0.5, "DATA.BATCH_SIZE", 4, "DATA.BATCH_FIT", "none"]
    run = script_runs.train(main_multi_gpu_finetune.main, tmp_path, "one", settings)
    options = {"script": "finetune", "ignore": ("encoder.norm.bias",)}  # before a batch norm
    script_runs.compare_two_ranks(run, [*settings, "DATA.BATCH_SIZE", 2], **options)


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["MODEL.GLOBAL_POOL", True], "GLOBAL_POOL"),
        (["SEG.LAYERS", [9]], "different blocks from 1 to 2"),
        (["SEG.LAYERS", [2, -1]], "different blocks"),
        (["SEG.LAYERS", []], "at least one block"),
        (["SEG.LAYERS", ["a"]], "by its number"),
        (["SEG.SCALE", ["a", "b"]], "two factors"),
        (["MODEL.NUM_CLASSES", 3], "have 8 classes"),
        (["MODEL.DROPPATH", 0.1], "SEG.FREEZE keeps the encoder"),
        (["SEG.SCALE", [2.0, 0.5]], "the smaller one first"),
        (["DATA.DATASET", "digits"], "has no masks"),
    ],
)
def test_settings_that_make_no_sense(tiny_run, opts, said):
    run = tiny_run("pretrain", *SEG, *opts)
    with pytest.raises(UserError, match=said):
        dispatch.train_or_evaluate(run)


@pytest.mark.usefixtures("few")
def test_the_page_shows_truth_prediction_and_errors(tmp_path, few):
    run = script_runs.train(main_multi_gpu_finetune.main, tmp_path, "seg", [*SEG, "TRAIN.NUM_EPOCHS", 1])
    page = report.main([str(run)])
    text = page.read_text()
    assert all(f"<b>{heading}</b>" in text for heading in ("image", "truth", "prediction", "errors"))
    assert "triangle</span>" in text
    assert "miou" in text
    if BROWSER is not None:
        check_page(page, tmp_path)
    with pytest.raises(UserError, match="a segmenter without a classifier"):
        load_models.load_classifier(run)
    other = script_runs.write_config(tmp_path, "other", [*SEG, "SEG.LAYERS", [1]])
    for flags in (["-eval", "-pretrained", str(run)], ["-resume", str(run)]):
        with pytest.raises(UserError, match=r"SEG\.LAYERS=\[1\]"):
            main_multi_gpu_finetune.main(["-cfg", str(other), "-output", str(tmp_path), *flags])
    main_multi_gpu_finetune.main(
        ["-cfg", str(other), "-pretrained", str(run), "-output", str(tmp_path), "-opts", "RUN", "new"]
    )
    assert "is for other classes or blocks" in (tmp_path / "new" / "log.txt").read_text()


def test_colours_of_labels_and_errors():
    colours = segments.palette(30)
    assert len(np.unique(colours, axis=0)) == 30
    shown = segments.colour(np.array([[-1, 0], [5, 29]]), colours)
    assert shown[0, 0].tolist() == [128, 128, 128]
    assert np.array_equal(shown[1], colours[[5, 29]])


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_losses_of_pixels_and_their_gradients_are_those_of_torch(scale):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = (scale * rng.normal(0, 1, (2, 7, 5, 6))).astype(np.float32)
    labels, weights = rng.integers(0, 7, (2, 5, 6)), rng.random((2, 5, 6)).astype(np.float32)
    logits, expected = paddle.to_tensor(values), torch.tensor(values, requires_grad=True)
    logits.stop_gradient = False
    losses = cross_entropy.pixel_cross_entropy(logits, paddle.to_tensor(labels))
    (losses * paddle.to_tensor(weights)).sum().backward()
    wanted = torch.nn.functional.cross_entropy(expected, torch.tensor(labels), reduction="none")
    (wanted * torch.tensor(weights)).sum().backward()
    assert_allclose(losses.numpy(), wanted.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert_allclose(logits.grad.numpy(), expected.grad.numpy(), atol=1e-6)
