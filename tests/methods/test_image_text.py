"""LiT: the loss against torch, and runs on generated images with captions."""

import numpy as np
import paddle
import pytest
from PIL import Image

import main_multi_gpu_pretrain
from clip import load_clip
from errors import UserError
from methods.image_text import image_text_loss
from methods.load_models import load_encoder
from storage import weight_files
from tests.conftest import TINY, assert_close
from tests.helpers import script_runs
from tests.helpers.sentences import make_tokenizer
from training.log import read_log

RELATIVE = 1e-6  # float32 in both, other order of sums
OPTS = [*TINY, "MODEL.TYPE", "IMAGE_TEXT", "DATA.DATASET", "lists", "DATA.DROP_LAST", True, "DATA.BATCH_SIZE", 16]
OPTS += ["TRAIN.NUM_EPOCHS", 3, "REPORT_FREQ", 1, "SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9, "TRAIN.BASE_LR", 0.01]
OPTS += ["TEXT.EMBED_DIM", 16, "TEXT.DEPTH", 1, "TEXT.NUM_HEADS", 2, "TEXT.VOCAB_SIZE", 450, "TEXT.POSITIONS", 30]
OPTS += [
    "LIT.EMBED_DIM",
    12,
    "LIT.EVAL_DATASET",
    "synthetic",
    "LIT.EVAL_NAMES",
    "digits",
    "LIT.LANGUAGES",
    ["en", "hi"],
]
OPTS += ["MODEL.NUM_CLASSES", 0, "DATA.CROP_PCT", 1.0]


@pytest.mark.parametrize(("factor", "relative"), [(10.0, RELATIVE), (1e4, 1e-3)])
def test_loss_and_gradients_against_torch(factor, relative):
    """Factors of 1e4 make scores of 1e4, of which float32 keeps three digits behind the point."""
    torch = pytest.importorskip("torch", reason="requirements/torch.txt is not installed")
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((6, 5)).astype(np.float32), rng.standard_normal((6, 5)).astype(np.float32)]
    arrays.append(np.array(np.log(factor), np.float32))
    ours = [paddle.to_tensor(array, stop_gradient=False) for array in arrays]
    theirs = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in arrays]
    loss = image_text_loss(*ours)
    loss.backward()
    image, text = (torch.nn.functional.normalize(features) for features in theirs[:2])
    scores, own = theirs[2].exp() * image @ text.T, torch.arange(6)
    wanted = (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2
    wanted.backward()
    assert np.isfinite(loss.item())
    assert_close(loss.numpy(), wanted.detach().numpy(), relative)
    for own, other in zip(ours, theirs, strict=True):
        assert_close(own.grad.numpy(), other.grad.numpy(), relative)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Return a data set of 40 images with captions, one without, and a tokenizer."""
    root = tmp_path_factory.mktemp("captioned")
    rng = np.random.default_rng(0)
    words = ["cat", "chien", "घोड़ा", "船", "truck with a very long story " * 5]
    lines = []
    for number in range(41):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(root / f"{number}.png")
        lines.append(
            f"{number}.png\t{words[number % 5] if number != 7 else ''} {number}" if number != 7 else "7.png\t "
        )
    (root / "train.tsv").write_text("\n".join(lines))
    make_tokenizer(root / "tokenizer.model")
    return root


def settings_of(captioned, *opts):
    return [*OPTS, "DATA.DATA_PATH", str(captioned), "LIT.TOKENIZER", str(captioned / "tokenizer.model"), *opts]


def train(folder, name, settings, *flags):
    return script_runs.train(main_multi_gpu_pretrain.main, folder, name, settings, *flags)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, captioned):
    """Return the directory of a run of six updates."""
    return train(tmp_path_factory.mktemp("lit"), "run", settings_of(captioned))


def test_only_text_tower_projections_and_scale_train(undisturbed):
    first, last = (weight_files.read(undisturbed / f"step-0000000{step}" / "model.pdparams") for step in (5, 6))
    changed = {
        name for name, tensor in first.tensors.items() if not np.array_equal(tensor.read(), last.tensors[name].read())
    }
    image = {name for name in first.tensors if name.startswith("vision_encoder.")}
    assert image
    assert not changed & image
    assert {"vision_projection", "text_projection", "logit_scale"} <= changed
    assert last.clip_architecture.text.vocab_size == 450


def test_zero_shot_accuracy_is_logged_per_language(undisturbed):
    scores = next(r for r in reversed(read_log(undisturbed)) if r["event"] == "eval")
    assert {"acc1_en", "acc5_en", "acc1_hi", "acc5_hi"} <= set(scores)
    assert next(r for r in reversed(read_log(undisturbed)) if r["event"] == "train")["logit_scale"] > 1


def test_the_result_is_a_clip_model(undisturbed, captioned):
    clip = load_clip(undisturbed)  # the tokenizer is in its configuration
    assert clip.classify(captioned / "1.png", ["a cat", "un chien"]).shape == [1, 2]
    encoder, _ = load_encoder(undisturbed)
    assert encoder(paddle.zeros([1, 3, 16, 16])).shape == [1, 32]


def test_a_stopped_run_goes_on_bit_identically(undisturbed, tmp_path, captioned):
    script_runs.stop_after_step(undisturbed, tmp_path)
    flags = ("-resume", str(tmp_path / "again"))
    script_runs.assert_same(train(tmp_path, "again", settings_of(captioned), *flags), undisturbed)


def test_another_tokenizer_does_not_go_on(undisturbed, tmp_path, captioned):
    make_tokenizer(tmp_path / "other.model", 300)
    settings = [*settings_of(captioned), "LIT.TOKENIZER", str(tmp_path / "other.model")]
    script_runs.stop_after_step(undisturbed, tmp_path)
    with pytest.raises(UserError, match="has teacher or tokenizer tokenizer"):
        train(tmp_path, "again", settings, "-resume", str(tmp_path / "again"))


def test_averaged_weights_are_kept_and_judged(tmp_path, captioned):
    run = train(tmp_path, "run", settings_of(captioned, "TRAIN.EMA_DECAY", 0.9, "TRAIN.NUM_EPOCHS", 1))
    own, averaged = (weight_files.read(run / "latest" / name).tensors for name in ("model.pdparams", "ema.pdparams"))
    assert own.keys() == averaged.keys()
    assert not np.array_equal(own["text_projection"].read(), averaged["text_projection"].read())
    assert load_clip(run).encode_texts("a cat").shape == [1, 12]


def test_two_ranks_equal_the_joint_batch(undisturbed, captioned):
    script_runs.compare_two_ranks(undisturbed, settings_of(captioned, "DATA.BATCH_SIZE", 8))


def test_cached_features_change_nothing_but_the_time(tmp_path, captioned):
    """Without augmentation both ways see the same images; the batches of the encoder are others, so not the bits."""
    plain = settings_of(captioned, "TRAIN.CROP_SCALE", [1.0, 1.0], "TRAIN.FLIP_PROB", 0.0, "TRAIN.NUM_EPOCHS", 1)
    runs = [
        train(tmp_path, name, [*plain, *opts])
        for name, opts in (("images", []), ("cached", ["LIT.CACHE_FEATURES", True]))
    ]
    first, second = (weight_files.read(weight_files.resolve(run)).tensors for run in runs)
    assert first.keys() == second.keys()
    for name in first:
        assert np.abs(first[name].read() - second[name].read()).max() < 2e-3, name


def test_a_stopped_run_with_cached_features_goes_on_bit_identically(tmp_path, captioned, undisturbed):
    """The image tower is loaded, so a resumed run must take it from the checkpoint."""
    settings = settings_of(captioned, "LIT.CACHE_FEATURES", True)
    run = train(tmp_path, "run", settings, "-pretrained", str(undisturbed))
    script_runs.stop_after_step(run, tmp_path)
    script_runs.assert_same(train(tmp_path, "again", settings, "-resume", str(tmp_path / "again")), run)


def test_cached_features_on_two_ranks(tmp_path, captioned):
    settings = settings_of(captioned, "LIT.CACHE_FEATURES", True)
    one = train(tmp_path, "run", settings)
    script_runs.compare_two_ranks(one, [*settings, "DATA.BATCH_SIZE", 8])


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (["LIT.TOKENIZER", None], "zoo fetch xlmr_tokenizer"),
        (["TRAIN.ACCUM_ITER", 2], "ACCUM_ITER=2: .* set it to 1"),
        (["DATA.DROP_LAST", False], "DROP_LAST=False: .* set it to True"),
        (["TEXT.VOCAB_SIZE", 50], "another model"),
        (["TEXT.NUM_HEADS", 3], "must divide TEXT.EMBED_DIM=16"),
        (["TRAIN.LAYER_DECAY", 0.5], "is not for MODEL.TYPE IMAGE_TEXT"),
        (["DATA.DATASET", "synthetic"], "has no captions"),
        (["LIT.EVAL_NAMES", "places365"], "no class names|has none"),
        (["LIT.LANGUAGES", ["tlh"]], "there are de, en"),
        (["LIT.LANGUAGES", []], "needs a language"),
    ],
)
def test_what_cannot_work_says_so(tmp_path, captioned, opts, words):
    with pytest.raises(UserError, match=words):
        train(tmp_path, "run", settings_of(captioned, *opts))
