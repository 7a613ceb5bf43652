"""What wraps a source hands on what it does not change; captions and labels are read as carefully as images."""

import numpy as np
import pytest

from errors import UserError
from methods import weak_labels
from pipeline import loading
from pipeline.array_source import ArraySource, as_configured
from pipeline.builtin_sets import open_digits
from pipeline.image_lists import ListedImages
from pipeline.mask_sets import MaskedImages
from pipeline.masks import Codes
from pipeline.pixel_array import PixelFormat
from pipeline.samplers import EvalSampler, TrainSampler
from pipeline.sources import ArrayImages, Source
from pipeline.spectral_scenes import BANDS, SpectralScenes
from pipeline.transforms import crop_and_flip, train_transform
from pipeline.web_shards import WebShards
from pipeline.wrapped_sources import _HANDED_ON, LabelsOnly, Subset
from tests.pipeline.test_left_out import photo, write_tar

pytestmark = pytest.mark.quick
GREY = ("DATA.IMAGE_CHANNELS", 1, "DATA.IMAGENET_MEAN", [0.3], "DATA.IMAGENET_STD", [0.4])


@pytest.fixture
def shards(tmp_path):
    """Return 4 shards of 5 images with captions and labels."""
    for shard in range(4):
        members = {}
        for number in range(5):
            name = f"{shard}{number}"
            members |= {f"{name}.png": photo(10 * number), f"{name}.txt": name.encode(), f"{name}.cls": b"1"}
        write_tar(tmp_path / f"{shard}.tar", members)
    return WebShards(tmp_path, "train", "caption")


def test_a_subset_of_images_in_memory_has_no_files(tiny_config):
    pytest.importorskip("simplejpeg")
    digits = open_digits("train")
    for wrapped in (Subset(digits, np.arange(20)), Subset(Subset(digits, np.arange(20)), np.arange(9))):
        assert not wrapped.is_encoded
        config = tiny_config("pretrain", "DATA.FAST_DECODE", True, *GREY)
        transform = train_transform(config, crop_and_flip(config, [0.2, 1.0]))
        loader = loading.Loader(wrapped, transform, EvalSampler(9, 9), channels=1, fast_decode=True)
        assert len(next(iter(loader))) == 9


def test_balanced_sets_in_memory_can_be_read(tiny_config):
    labels = np.repeat([0, 1], [90, 10])
    source = ArrayImages(np.zeros((100, 8, 8, 3), np.uint8), labels, "test")
    config = tiny_config("finetune", "MODEL.TYPE", "WEAK_LABELS", "WSP.BALANCE", 0.5, "MODEL.GLOBAL_POOL", False)
    balanced = weak_labels.balanced(config, source)
    assert len(balanced) > 100
    assert not balanced.is_encoded
    assert balanced.image(len(balanced) - 1).size == (8, 8)


def test_subsets_of_files_keep_files_captions_and_notes(shards):
    subset = Subset(shards, np.array([3, 17]))
    assert subset.is_encoded
    assert subset.read(1) == shards.read(17)
    assert [subset.captions[0], subset.captions[1]] == ["03", "32"]
    assert subset.describe(1) == shards.describe(17)
    assert subset.order is None, "its images are others"
    assert subset.notes == shards.notes


def test_all_of_a_source_is_handed_on_or_follows_from_what_is():
    """The rest asks for labels, names of classes and the like, which a wrapper has."""
    public = {name for name in {**vars(Source), **Source.__annotations__} if not name.startswith("_")}
    followed = {"label_lists", "largest_label", "has_labels", "single_labels", "use_class_names", "count_classes"}
    assert public - followed - {"summary", "check"} == set(_HANDED_ON)


def test_a_part_of_a_set_has_all_of_its_classes(tmp_path):
    (tmp_path / "train_list.txt").write_text("a.png 1,0,0\nb.png 0,1,1\n")
    source = ListedImages(tmp_path / "train_list.txt", "labels")
    assert source.count_classes() == Subset(source, np.array([0])).count_classes() == 3
    digits = open_digits("train")
    assert Subset(digits, np.flatnonzero(digits.labels < 4)).count_classes() == 10


def test_photos_are_not_read_from_a_part_of_arrays(tiny_config):
    with pytest.raises(UserError, match="its images are arrays, not photos"):
        as_configured(tiny_config("pretrain"), Subset(SpectralScenes("train"), np.arange(9)))


@pytest.mark.parametrize("wrap", [LabelsOnly, lambda source: Subset(source, np.arange(20)), lambda source: source])
def test_wrapped_arrays_keep_their_number_of_channels(wrap):
    form = PixelFormat(BANDS, (0.0,) * BANDS, (1e4,) * BANDS, shown=(3, 2, 1))
    wrapped = wrap(ArraySource(SpectralScenes("train"), form))
    assert wrapped.check(num_classes=10, channels=BANDS) == []
    with pytest.raises(UserError, match="DATA.IMAGE_CHANNELS=3: .* is read with 13 channels"):
        wrapped.check(num_classes=10, channels=3)


@pytest.mark.parametrize("form", [None, PixelFormat(3, (0.0,) * 3, (255.0,) * 3, shown=(0, 1, 2))])
def test_missing_masks_are_named_of_the_chosen_images_only(tmp_path, form):
    for name in ("1.png", "2.png", "1_mask.png"):
        (tmp_path / name).write_bytes(photo(9))
    pairs = [(str(tmp_path / f"{number}.png"), str(tmp_path / f"{number}_mask.png")) for number in (1, 2)]
    source = MaskedImages(pairs, Codes.of_range(2), tmp_path, [])
    source = source if form is None else ArraySource(source, form)
    for broken in (source, Subset(source, np.array([1])), LabelsOnly(source)):
        with pytest.raises(UserError, match=r"1 masks are missing: .*2_mask\.png"):
            broken.check(num_classes=None, channels=3)
    assert Subset(source, np.array([0])).check(num_classes=None, channels=3) == []


def test_images_with_cached_features_keep_the_order_of_shards(shards):
    wrapped = LabelsOnly(shards)
    assert not wrapped.is_encoded
    sampler = TrainSampler(len(wrapped), 4, order=wrapped.order)
    shuffled = TrainSampler(len(shards), 4, order=shards.order)
    assert list(iter(sampler)) == list(iter(shuffled))
    assert wrapped.alternative(3, 30) == shards.alternative(3, 30)


@pytest.mark.parametrize("what", ["caption", "label"])
@pytest.mark.parametrize("bad", ["skip", "error"])
def test_what_belongs_to_an_image_is_read_as_carefully_as_the_image(shards, monkeypatch, what, bad):
    def fail(index):
        if index == 7:
            raise OSError("the shard ends too early")
        return {"caption": "text", "label": [1]}[what]

    broken = type("Broken", (), {"__len__": lambda self: 20, "__getitem__": lambda self, index: fail(index)})()
    setattr(shards, f"{what}s", broken)
    look = [lambda image, rng: np.zeros(1)]
    reader = loading.Reader(shards, look, 3, 0, bad, True, False, True, with_captions=True)
    if bad == "error":
        with pytest.raises(UserError, match="ends too early"):
            reader.sample((0, 7))
        return
    sample, notes = reader.sample((0, 7))
    assert sample.index == 8
    assert len(notes) == 1


def test_a_shard_that_is_cut_while_training_without_captions_costs_its_images_only(tmp_path):
    for shard in range(2):
        write_tar(tmp_path / f"{shard}.tar", {f"{n}.png": photo(n) for n in range(6)} | {"0.txt": b"a text"})
    source = WebShards(tmp_path, "train", "none")
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:3000])
    notes: list[str] = []
    loader = loading.Loader(
        source, lambda image, rng: np.zeros(1), EvalSampler(12, 12), bad_images="skip", note_bad=notes.append
    )
    batch = next(iter(loader))
    assert batch.captions is None
    assert len(batch) + len(notes) == 12
    assert len(batch) >= 6
