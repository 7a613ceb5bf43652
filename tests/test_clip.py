"""The text tower and whole CLIP models compute what transformers' XLM-R and ViT compute, in torch."""

import numpy as np
import paddle
import pytest
from PIL import Image

import checkpoint
from clip import CLIP, load_clip
from config import get_config
from errors import UserError
from pipeline import captions
from pipeline.transforms import eval_transform
from port_weights import port
from storage import weight_files
from storage.architecture import Tower
from storage.clip_architecture import TextArchitecture
from tests.conftest import assert_close
from tests.helpers.sentences import make_tokenizer
from tests.helpers.small_models import make_vit
from text_tower import TextTower
from transformer import build_transformer

FLOAT32_RELATIVE = 1e-5  # two float32 implementations that add in different orders


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "sentencepiece.bpe.model")


def make_clip(tokenizer_file=None, seed=0) -> CLIP:
    paddle.seed(seed)
    config = get_config(None, ["MODEL.TYPE", "IMAGE_TEXT", "DATA.IMAGE_SIZE", 16, "DATA.CROP_PCT", 1.0])
    text = TextTower(TextArchitecture(Tower(24, 2, 3), 400, 40))
    tokenizer = None if tokenizer_file is None else captions.Tokenizer(tokenizer_file)
    clip = CLIP(make_vit((16, 16), num_classes=0), text, 20, eval_transform(config), tokenizer)
    clip.eval()
    return clip


@pytest.mark.quick
def test_padding_changes_nothing():
    clip = make_clip()
    ids = paddle.to_tensor([[0, 5, 6, 7, 2]])
    padded = paddle.to_tensor([[0, 5, 6, 7, 2] + [1] * 20])
    assert_close(clip.encode_texts(padded).numpy(), clip.encode_texts(ids).numpy(), 1e-6)


@pytest.mark.quick
def test_images_and_texts_of_every_kind(tmp_path, tokenizer_file):
    clip = make_clip(tokenizer_file)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "photo.png")
    wanted = clip.encode_images(image)
    assert wanted.shape == [1, 20]
    assert_close(wanted.norm(axis=-1).numpy(), [1.0], 1e-6)
    tensor = clip.prepare_images(image)
    for images in (tmp_path / "photo.png", str(tmp_path / "photo.png"), [image], tensor, [tensor[0]]):
        assert_close(clip.encode_images(images).numpy(), wanted.numpy(), 1e-6)
    for mode in ("L", "RGBA", "P", "CMYK", "1", "LA", "I;16"):
        assert clip.encode_images(image.convert("L").convert(mode)).shape == [1, 20]
    texts = ["a cat", "un chien", "एक घोड़ा"]
    probabilities = clip.classify([image, tmp_path / "photo.png"], texts)
    assert probabilities.shape == [2, 3]
    assert_close(probabilities.sum(axis=-1).numpy(), [1.0, 1.0], 1e-6)
    assert_close(clip.classify(wanted, clip.encode_texts(texts)).numpy(), probabilities[:1].numpy(), 1e-6)
    assert clip.classify(image, "a cat").shape == [1, 1]
    logits = clip.classify(image, texts, return_logits=True)
    assert_close(logits.numpy(), (clip.logit_scale.exp() * (wanted @ clip.encode_texts(texts).T)).numpy(), 1e-6)


@pytest.mark.quick
def test_bad_inputs_say_what_is_wrong(tmp_path, tokenizer_file):
    clip = make_clip(tokenizer_file)
    (tmp_path / "text.png").write_text("no image")
    for call, words in (
        (lambda: clip.encode_images(tmp_path / "text.png"), "cannot be read as an image"),
        (lambda: clip.encode_images([]), "no image"),
        (lambda: clip.encode_images([3]), "images are tensors"),
        (lambda: clip.encode_texts([]), "no text"),
        (lambda: clip.encode_texts([3]), "is not a text"),
        (lambda: make_clip().encode_texts("a cat"), "need a tokenizer"),
        (lambda: clip.encode_texts(paddle.ones([1, 60], "int64")), "positions for 38"),
        (lambda: captions.Tokenizer(tmp_path / "text.png"), "cannot be read as a sentencepiece model"),
        (lambda: captions.Tokenizer(tmp_path / "absent"), "absent: No such file"),
        (
            lambda: CLIP(
                make_vit(num_classes=0), TextTower(TextArchitecture(Tower(24, 1, 3), 50, 40)), 8, None, clip.tokenizer
            ),
            "another model",
        ),
    ):
        with pytest.raises(UserError, match=words):
            call()


@pytest.mark.quick
def test_long_texts_are_cut(tokenizer_file):
    clip = make_clip(tokenizer_file)
    assert clip.tokenize("cat " * 500).shape == [1, 38]
    assert clip.tokenize(["", "cat"]).shape[0] == 2


# ---- against torch ------------------------------------------------------------------------------


@pytest.fixture
def peer():
    pytest.importorskip("torch", reason="requirements/torch.txt is not installed")
    pytest.importorskip("transformers", reason="requirements/torch.txt is not installed")
    from tests.helpers import torch_clip

    return torch_clip


def peer_features(peer, ids, images):
    import torch

    image_projection, text_projection, scale = peer.projections()
    with torch.no_grad():
        mask = torch.tensor(ids != 1)
        text = peer.text_model()(torch.tensor(ids), attention_mask=mask).last_hidden_state[:, 0] @ text_projection
        image = peer.image_model()(images).last_hidden_state[:, 0] @ image_projection
        text, image = (torch.nn.functional.normalize(features) for features in (text, image))
        return image.numpy(), text.numpy(), torch.softmax(scale.exp() * image @ text.T, -1).numpy()


@pytest.mark.parametrize("layout", ["new", "old"])
def test_whole_models_compute_what_transformers_does(tmp_path, peer, layout):
    import torch

    from tests.helpers.foreign_weights import HEADS, images

    torch.save(peer.maws_file(layout), tmp_path / "clip.pt")
    report = port(tmp_path / "clip.pt", tmp_path / "clip.pdparams", heads=(HEADS, peer.TEXT_HEADS))
    assert report.mapped == len(peer.maws_file(layout))
    clip = load_clip(tmp_path / "clip.pdparams")
    for ids in (peer.ids(), peer.ids()[:1]):  # padded, and not
        image, text, probabilities = peer_features(peer, ids, images())
        photos = paddle.to_tensor(images().numpy())
        assert_close(clip.encode_images(photos).numpy(), image, FLOAT32_RELATIVE)
        assert_close(clip.encode_texts(paddle.to_tensor(ids)).numpy(), text, FLOAT32_RELATIVE)
        assert_close(clip.classify(photos, paddle.to_tensor(ids)).numpy(), probabilities, FLOAT32_RELATIVE)


def test_both_layouts_are_one_model_and_go_back_bit_for_bit(tmp_path, peer):
    import torch

    heads, ported = (4, peer.TEXT_HEADS), {}
    for layout in ("new", "old"):
        content = peer.maws_file(layout)
        torch.save(content, tmp_path / f"{layout}.pt")
        port(tmp_path / f"{layout}.pt", tmp_path / f"{layout}.pdparams", heads=heads)
        ported[layout] = checkpoint.read_weights(tmp_path / f"{layout}.pdparams")
        port(tmp_path / f"{layout}.pdparams", tmp_path / f"{layout}-back.pt", target="maws")
        back = torch.load(tmp_path / f"{layout}-back.pt", weights_only=True)
        assert set(back) == set(content)
        assert all(torch.equal(back[name], content[name]) and back[name].shape == content[name].shape for name in back)
        port(tmp_path / f"{layout}.pt", tmp_path / "direct.pt", target="maws", heads=heads)
        assert all(torch.equal(v, content[n]) for n, v in torch.load(tmp_path / "direct.pt", weights_only=True).items())
    assert ported["new"].keys() == ported["old"].keys()
    assert all(np.array_equal(ported["new"][name], ported["old"][name]) for name in ported["new"])


@pytest.mark.parametrize("whole", [False, True])
def test_text_towers_of_transformers(tmp_path, peer, whole):
    """The directory that save_pretrained writes, of the encoder alone or with the head of the language model."""
    import torch
    from transformers import XLMRobertaForMaskedLM

    model = peer.text_model()
    saved = model
    if whole:
        saved = XLMRobertaForMaskedLM(model.config).eval()
        saved.roberta.load_state_dict(model.state_dict())
    saved.save_pretrained(tmp_path / "xlmr")
    report = port(tmp_path / "xlmr", tmp_path / "text.pdparams")
    assert report.family == "transformers XLM-R"
    tower = TextTower(
        TextArchitecture(Tower(peer.TEXT_DIM, peer.TEXT_DEPTH, peer.TEXT_HEADS), peer.VOCAB, peer.POSITIONS)
    )
    checkpoint.load_weights(tower, tmp_path / "text.pdparams")
    tower.eval()
    ids = peer.ids()
    with torch.no_grad():
        wanted = model(torch.tensor(ids), attention_mask=torch.tensor(ids != 1)).last_hidden_state.numpy()
    is_token = (ids != 1)[:, :, None]
    assert_close(tower.forward_tokens(paddle.to_tensor(ids)).numpy() * is_token, wanted * is_token, FLOAT32_RELATIVE)
    other = TextTower(TextArchitecture(Tower(peer.TEXT_DIM, peer.TEXT_DEPTH, 4), peer.VOCAB, peer.POSITIONS))
    with pytest.raises(UserError, match="5 heads"):
        checkpoint.load_weights(other, tmp_path / "text.pdparams")


def test_towers_are_read_out_of_a_clip_file(tmp_path, peer):
    import torch

    torch.save(peer.maws_file(), tmp_path / "clip.pt")
    port(tmp_path / "clip.pt", tmp_path / "clip.pdparams", heads=(4, peer.TEXT_HEADS))
    tower = TextTower(
        TextArchitecture(Tower(peer.TEXT_DIM, peer.TEXT_DEPTH, peer.TEXT_HEADS), peer.VOCAB, peer.POSITIONS)
    )
    checkpoint.load_weights(tower, tmp_path / "clip.pdparams")
    settings = weight_files.read(tmp_path / "clip.pdparams").clip_architecture.image.settings()
    encoder = build_transformer(get_config(None, [word for pair in settings.items() for word in pair]))
    report = checkpoint.load_weights(encoder, tmp_path / "clip.pdparams")
    assert len(report.loaded) == len(encoder.state_dict())
    report = port(tmp_path / "clip.pt", tmp_path / "image.pth", target="timm", heads=(4, None))
    found = torch.load(tmp_path / "image.pth", weights_only=True)["state_dict"]
    assert report.family == "MAWS CLIP, image tower"
    assert all(torch.equal(tensor, peer.maws_file()[f"vision_encoder.{name}"]) for name, tensor in found.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("text_projection"), "text_projection is missing"),
        (lambda content: content.update(odd=content["text_projection"]), "no place"),
        (lambda content: content.update(logit_scale=content["text_projection"]), "logit_scale is"),
        (lambda content: content["vision_projection"].fill_(float("nan")), "not finite"),
    ],
)
def test_damaged_clip_files_are_refused(tmp_path, peer, change, words):
    import torch

    content = peer.maws_file()
    change(content)
    torch.save(content, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=words):
        port(tmp_path / "clip.pt", tmp_path / "clip.pdparams", heads=(4, peer.TEXT_HEADS))
    assert not (tmp_path / "clip.pdparams").exists()
    torch.save(peer.maws_file(), tmp_path / "clip.pt")
    with pytest.raises(UserError, match="-heads IMAGE,TEXT"):
        port(tmp_path / "clip.pt", tmp_path / "clip.pdparams", heads=(4, None))


# ---- tokens -------------------------------------------------------------------------------------


def test_token_ids_are_transformers(tokenizer_file):
    """transformers takes a literal `<s>` or `<pad>` for the token; here they are text, as for sentencepiece."""
    pytest.importorskip("transformers", reason="requirements/torch.txt is not installed")
    from sentencepiece import sentencepiece_model_pb2
    from transformers import XLMRobertaTokenizer

    from tests.helpers.sentences import SENTENCES

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer_file.read_bytes())
    special = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    pieces = [(piece.piece, piece.score) for piece in model.pieces[3:]]
    charsmap = model.normalizer_spec.precompiled_charsmap
    peer = XLMRobertaTokenizer(vocab=[*special, *pieces, ("<mask>", 0.0)], _spm_precompiled_charsmap=charsmap)
    odd = ["  two  spaces\tand a tab ", "ﬁne ｆｕｌｌ width", "unknown: ꙮ ☃", "", "a\nb", "é and é", "\u200bzero width"]  # noqa: RUF001
    own = captions.Tokenizer(tokenizer_file)
    texts = [*SENTENCES, *odd]
    assert own(texts) == [peer(text).input_ids for text in texts]
    assert len(texts) >= 30
    assert own.vocab_size == len(peer)
    assert own(["<s> <pad>"]) != [peer("<s> <pad>").input_ids]
    assert not {0, 1, 2} & set(own(["<s> <pad>"])[0][1:-1])
    assert own(["cat " * 300])[0][:1] + own(["cat " * 300])[0][-1:] == [0, 2]
    assert len(own(["cat " * 300])[0]) == 102
    with pytest.raises(UserError, match="a list of texts"):
        own("a cat")


def test_texts_of_one_length_are_masked_on_a_gpu_without_a_look_at_them(monkeypatch):
    """Against the same without a mask, as on CPU; a look at the ids would wait for the device."""
    paddle.seed(0)
    tower = TextTower(TextArchitecture(Tower(24, 2, 3), 50, 40))
    tower.eval()
    ids = paddle.randint(3, 50, [4, 7])
    expected = tower(ids).numpy()
    monkeypatch.setattr(paddle.device, "get_device", lambda: "npu:0")
    monkeypatch.setattr(paddle.Tensor, "__bool__", lambda tensor: pytest.fail("waits for the device"))
    assert_close(tower(ids).numpy(), expected, FLOAT32_RELATIVE)
