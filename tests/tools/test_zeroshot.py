"""Zero-shot classification: class vectors, accuracy on folders and named sets, pages, and a quick look."""

import json
import shutil

import numpy as np
import pytest
import sentencepiece
from PIL import Image

from clip import load_clip
from errors import UserError
from methods import dispatch, zero_shot
from pipeline.captions import TRAINER_OPTIONS, Tokenizer
from pipeline.web_shards import WebShards
from storage.cache import CACHE_VARIABLE
from tests.conftest import assert_close
from tests.helpers.small_clip import write_clip
from tools import caption_dataset, check_dataset, knn, neighbours, pack_dataset, zeroshot

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a CLIP model's file with its YAML and its tokenizer beside it."""
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Return a folder data set of two classes, 6 photos each."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("cat", "old_truck"):
        (tmp_path / "photos" / "val" / name).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (24, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / "val" / name / f"{number}.png")
    return tmp_path / "photos"


def test_class_vectors_follow_the_published_rule(weights):
    clip = load_clip(weights)
    texts = [["a cat", "my cat", "a photo of a cat that is long"], ["a dog"]]
    vectors = zero_shot.class_vectors(clip, texts).numpy()
    for own, vector in zip(texts, vectors, strict=True):
        raw = np.stack([clip.encode_texts(text, normalize=False).numpy()[0] for text in own]).astype(np.float64)
        mean = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).mean(axis=0)
        assert_close(vector, mean / np.linalg.norm(mean), 1e-5)
    with pytest.raises(UserError, match="class 1 has no texts"):
        zero_shot.class_vectors(clip, [["a cat"], []])


def test_folders_work_at_once(weights, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    args = [str(weights), "-data_path", str(photos), "-language", "en", "hi", "-out", str(out)]
    scores = zeroshot.main(args)
    assert set(scores) == {"en", "hi"}
    assert scores["en"]["images"] == 12
    assert json.loads((out / "scores.json").read_text()) == scores
    page = (out / "en" / "report.html").read_text()
    assert page.count("<img") == 13  # 12 photos and the confusion matrix
    assert "old truck" in page
    monkeypatch.setattr(zero_shot, "class_vectors", lambda *args: pytest.fail("computed again"))
    assert zeroshot.main(args) == scores


def test_own_sentences_and_names(weights, photos, tmp_path):
    (tmp_path / "t.txt").write_text("photo: {}\n")
    (tmp_path / "c.txt").write_text("cat, tabby\ntruck\n")
    args = [str(weights), "-data_path", str(photos), "-templates", str(tmp_path / "t.txt")]
    assert 0 <= zeroshot.main([*args, "-classnames", str(tmp_path / "c.txt")])["en"]["acc1"] <= 100
    (tmp_path / "c.txt").write_text("cat\n")
    with pytest.raises(UserError, match="1 classes have names"):
        zeroshot.main([*args, "-classnames", str(tmp_path / "c.txt")])


def test_a_quick_look(weights, photos, capsys):
    photo = str(photos / "val" / "cat" / "0.png")
    probabilities = zeroshot.main([str(weights), "-texts", "a cat", "un chien", "घोड़ा", photo])
    assert probabilities.shape == (1, 3)
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert "un chien" in capsys.readouterr().out
    with pytest.raises(UserError, match="needs photos"):
        zeroshot.main([str(weights), "-texts", "a cat"])


def test_weights_of_other_models_are_refused(photos, tmp_path, tiny_run):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    with pytest.raises(UserError, match="no CLIP model"):
        zeroshot.main([str(run.directory), "-data_path", str(photos)])


# ---- data sets of captions ----------------------------------------------------------------------


def test_a_caption_data_set_from_labels(tmp_path):
    caption_dataset.main(["-dataset", "digits", "-out", str(tmp_path / "pairs"), "-languages", "en", "de"])
    texts = tmp_path / "pairs" / "captions.txt"
    files = {"input": str(texts), "model_prefix": str(tmp_path / "t")}
    sentencepiece.SentencePieceTrainer.train(**files, vocab_size=200, minloglevel=2, **TRAINER_OPTIONS)
    assert Tokenizer(tmp_path / "t.model").vocab_size <= 202
    report = check_dataset.check_split("webdataset", str(tmp_path / "pairs"), "train", None, full=False)
    assert report["problems"] == []
    assert report["images"] == 2874
    assert report["classes"] == 12
    with pytest.raises(UserError, match="is not empty"):
        caption_dataset.main(["-dataset", "digits", "-out", str(tmp_path / "pairs")])


def test_image_lists_are_packed_as_shards(photos, tmp_path):
    lines = [f"val/cat/{number}.png\ta cat, number {number}" for number in range(6)]
    (photos / "train.tsv").write_text("\n".join(lines))
    pack_dataset.main([str(photos), str(tmp_path / "packed"), "-dataset", "lists", "-size", "0", "-per_shard", "4"])
    source = WebShards(tmp_path / "packed", "train", "caption")
    assert [source.captions[index] for index in range(6)] == [f"a cat, number {number}" for number in range(6)]
    assert source.read(3) == (photos / "val" / "cat" / "3.png").read_bytes()
    shutil.rmtree(tmp_path / "packed")


def test_tools_that_take_one_label_do_without_several(tmp_path, tiny_run):
    caption_dataset.main(["-dataset", "digits", "-out", str(tmp_path / "pairs")])
    shutil.copytree(tmp_path / "pairs" / "train", tmp_path / "pairs" / "val")
    grey = ["DATA.IMAGE_CHANNELS", 1, "DATA.IMAGENET_MEAN", [0.3], "DATA.IMAGENET_STD", [0.4]]
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0, "DATA.DATASET", "digits", *grey)
    dispatch.train_or_evaluate(run)
    data = ["-dataset", "webdataset", "-data_path", str(tmp_path / "pairs"), "-bank", "40"]
    assert neighbours.main([str(run.directory), *data, "-out", str(tmp_path / "n.png")]).is_file()
    with pytest.raises(UserError, match="has 2 labels, and here each image must have one"):
        knn.main([str(run.directory), *data[:4]])
