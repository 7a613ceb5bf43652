import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import config
import datasets
from errors import UserError
from pipeline import builtin_sets
from pipeline.labels import RaggedLists
from pipeline.samplers import EvalSampler, TrainSampler
from training import loaders

pytestmark = pytest.mark.quick


def open_folder(root, name="imagenet2012", split="train", **options):
    return datasets.open_source(name, str(root), split, num_classes=3, **options)


# ---- sources


def test_list_files_with_spaces(image_folder):
    source = open_folder(image_folder)
    assert len(source) == 24
    assert source.path(23).name == "7 2.jpg"
    assert np.bincount(source.labels).tolist() == [8, 8, 8]
    assert source.check(num_classes=3, channels=3) == []


def test_folders_stand_in_for_absent_lists(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    shutil.copytree(image_folder / "val" / "dog", tmp_path / "val" / "dog")
    source = open_folder(tmp_path)
    assert source.class_names == ["cat", "dog", "red fox"]
    assert np.bincount(source.labels).tolist() == [8, 8, 8]
    assert set(open_folder(tmp_path, split="val").labels) == {1}, "labels of val are those of train"
    flat = open_folder(tmp_path / "train" / "dog", name="folder", needs="none")
    assert len(flat) == 8
    assert set(flat.labels) == {-1}


def test_labels_of_class_folders_are_known_where_none_are_needed(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    shutil.copytree(image_folder / "val" / "dog", tmp_path / "val" / "dog")
    for split in ("train", "val"):
        needed, found = (open_folder(tmp_path, split=split, needs=needs) for needs in ("label", "none"))
        assert [str(path) for path in found.paths] == [str(path) for path in needed.paths]
        assert np.array_equal(found.labels, needed.labels)
    shutil.copy(tmp_path / "val" / "dog" / "0 1.jpg", tmp_path / "train" / "stray.jpg")
    assert set(open_folder(tmp_path, needs="none").labels) == {-1}


def test_linked_class_folders_count(image_folder, tmp_path):
    (tmp_path / "train").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).symlink_to(image_folder / "train" / name)
    assert len(open_folder(tmp_path, name="folder")) == 16
    assert len(open_folder(tmp_path, name="folder", needs="none")) == 16


def write_cifar(path, name, as_archive):
    rng = np.random.default_rng(0)
    archive, folder, files, test_file, key = builtin_sets.CIFAR[name]
    (path / folder).mkdir()
    for file in [*files, test_file]:
        data = {b"data": rng.integers(0, 256, (4, 3072)).astype(np.uint8), key: [0, 1, 2, 1], b"filenames": [b"a"] * 4}
        (path / folder / file).write_bytes(pickle.dumps(data, protocol=2))
    if as_archive:
        with tarfile.open(path / archive, "w:gz") as tar:
            tar.add(path / folder, folder)
        shutil.rmtree(path / folder)


@pytest.mark.parametrize("as_archive", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_archives(tmp_path, name, as_archive):
    write_cifar(tmp_path, name, as_archive)
    train, val = (datasets.open_source(name, str(tmp_path), split, num_classes=3) for split in ("train", "val"))
    assert len(train) == (20 if name == "cifar10" else 4)
    assert len(val) == 4
    data = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    assert np.asarray(train.image(1))[3, 5].tolist() == [data[1, 3 * 32 + 5], data[1, 1024 + 101], data[1, 2048 + 101]]


def test_hostile_cifar_archive_runs_nothing(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for file in [f"data_batch_{i}" for i in range(1, 6)]:
        (tmp_path / "cifar-10-batches-py" / file).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ValueError, match="asks for os.system"):
        datasets.open_source("cifar10", str(tmp_path), "train", num_classes=10)


def test_digits_are_split_without_overlap():
    train, val = (datasets.open_source("digits", "", split, num_classes=10) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert train.images.max() == 255
    assert val.check(num_classes=10, channels=1) == []


def test_synthetic_images_are_the_same_every_time():
    first, second = (
        datasets.open_source("synthetic", "", "train", num_classes=5, synthetic_hw=(8, 12)) for _ in range(2)
    )
    assert np.array_equal(first.images, second.images)
    assert first.images.shape == (1024, 8, 12, 3)


# ---- checks


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/cat/none.jpg 0\n", "1 files are missing: .*none.jpg"),
        ("train/dog/0 1.jpg 3\n", r"1 labels are not from 0 to 2 \(MODEL.NUM_CLASSES=3\): .*0 1.jpg has 3"),
        ("train/dog/0 1.jpg -1\n", "line 25: expected 'path label'"),
        ("train/dog/0.jpg\n", "line 25: expected 'path label'"),
        ("train/dog/0 1.jpg --5\n", "line 25: expected 'path label'"),
        ("train/dog/0 1.jpg 12345678901234567890\n", "line 25: .* are not labels"),
        ("train/dog/0 1.jpg 1.5\n", "line 25: expected 'path label'"),
    ],
)
def test_bad_lines_are_named(image_folder, tmp_path, line, message):
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(image_folder / split)
    (tmp_path / "train_list.txt").write_text((image_folder / "train_list.txt").read_text() + line)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path).check(num_classes=3, channels=3)


def test_empty_classes_and_missing_places_are_named(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "train")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="1 classes have no images: empty"):
        open_folder(tmp_path).check(num_classes=4, channels=3)
    with pytest.raises(ValueError, match="DATA_PATH=.*no such directory; set it with -data_path"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected val/<class>/\*.jpg"):
        open_folder(tmp_path, split="val")
    with pytest.raises(ValueError, match=r"holds neither cifar-10-python.tar.gz"):
        open_folder(tmp_path, name="cifar10")
    with pytest.raises(ValueError, match="DATA.IMAGE_CHANNELS=5"):
        open_folder(image_folder).check(num_classes=3, channels=5)
    warnings = open_folder(image_folder).check(num_classes=9, channels=3)
    assert "6 of MODEL.NUM_CLASSES=9 classes have no images: 3, 4, 5, 6, 7 and 1 more" in warnings[0]


# ---- samplers


@pytest.mark.parametrize(
    ("num_images", "batch", "accum", "world"),
    [(21, 4, 1, 1), (21, 2, 2, 2), (23, 1, 2, 3), (16, 4, 2, 2), (17, 4, 2, 2)],
)
def test_every_image_is_dealt_once(num_images, batch, accum, world):
    samplers = [TrainSampler(num_images, batch, accum, rank=rank, world_size=world) for rank in range(world)]
    indices = []
    for sampler in samplers:
        sampler.set_position(3)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        sizes = [size for update in range(sampler.updates_per_epoch) for size in sampler.micro_sizes(update)]
        assert [len(batch) for batch in batches] == sizes
        assert {epoch for batch in batches for epoch, _ in batch} == {3}
        indices += [index for batch in batches for _, index in batch]
    rest = num_images % (batch * accum * world)
    dropped = rest if rest < world else 0
    assert sorted(indices) == sorted(set(indices))
    assert len(indices) == num_images - dropped


def test_an_update_has_the_same_images_however_they_are_dealt():
    def updates(batch, accum, world):
        dealt = []
        samplers = [TrainSampler(21, batch, accum, rank=rank, world_size=world, seed=5) for rank in range(world)]
        iterators = [iter(sampler) for sampler in samplers]
        for update in range(samplers[0].updates_per_epoch):
            images = set()
            for sampler, iterator in zip(samplers, iterators, strict=True):
                for _ in sampler.micro_sizes(update):
                    images |= {index for _, index in next(iterator)}
            dealt.append(images)
        return dealt

    assert updates(8, 1, 1) == updates(2, 4, 1) == updates(1, 4, 2) == updates(2, 1, 4)
    assert [len(images) for images in updates(8, 1, 1)] == [8, 8, 5]


def test_order_depends_on_seed_and_epoch_and_can_be_entered_anywhere():
    def order(seed, epoch, first_update=0):
        sampler = TrainSampler(20, 4, seed=seed)
        sampler.set_position(epoch, first_update)
        return [[index for _, index in batch] for batch in sampler]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert order(0, 1, 3) == order(0, 1)[3:]


def test_too_few_images():
    assert TrainSampler(5, 8).updates_per_epoch == 1
    with pytest.raises(ValueError, match="5 images are too few: an update takes 8"):
        TrainSampler(5, 8, drop_last=True)
    with pytest.raises(ValueError, match="too few"):
        TrainSampler(1, 1, world_size=2)
    assert TrainSampler(21, 4, drop_last=True).updates_per_epoch == 5


def test_evaluation_pads_nothing():
    dealt = [[index for batch in EvalSampler(11, 3, rank, 4) for _, index in batch] for rank in range(4)]
    assert sorted(index for indices in dealt for index in indices) == list(range(11))


def test_loaded_archive_is_only_read_from(tmp_path):
    write_cifar(tmp_path, "cifar10", as_archive=True)
    data = (tmp_path / "cifar-10-python.tar.gz").read_bytes()
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read as the published python archive"):
        datasets.open_source("cifar10", str(tmp_path), "train", num_classes=3)
    write_cifar(tmp_path, "cifar10", as_archive=False)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"\x80\x02garbage")
    with pytest.raises(ValueError, match="test_batch: damaged or not a pickle"):
        datasets.open_source("cifar10", str(tmp_path), "val", num_classes=3)


@pytest.mark.parametrize("path", ["../a.jpg", "train/../../a.jpg", "/etc/passwd"])
def test_lists_do_not_point_outside(tmp_path, path):
    (tmp_path / "train_list.txt").write_text(f"{path} 0\n")
    with pytest.raises(UserError, match="line 1: .* is outside; -opts DATA.LIST_OUTSIDE True allows it"):
        open_folder(tmp_path)
    assert len(open_folder(tmp_path, list_outside=True)) == 1


def test_every_name_in_the_configuration_can_be_opened():
    assert set(datasets.NAMES) == set(config.DATASETS)


def test_a_set_with_several_labels_per_image_is_checked(image_folder):
    source = datasets.open_source("imagenet2012", str(image_folder), "train", num_classes=3)
    source.class_names, lists = None, [[0, 1], [2], *[[index % 3] for index in range(22)]]
    source.labels = RaggedLists.of(lists)
    assert source.check(num_classes=3, channels=3) == []
    assert source.count_classes() == 3
    assert source.summary().startswith("24 images of 3 classes")
    lists[1] = []
    source.labels = RaggedLists.of(lists)
    (note,) = source.check(num_classes=3, channels=3)
    assert "1 images have no label: they are of none of the classes" in note
    lists[2] = [7, 0]
    source.labels = RaggedLists.of(lists)
    with pytest.raises(ValueError, match="1 labels are not from 0 to 2 .*2 0.jpg has 7"):
        source.check(num_classes=3, channels=3)


def test_a_list_of_names_limits_the_train_split(image_folder, tmp_path, tiny_run):
    names = ["0 0.jpg", "3 1.jpg", "7 2.jpg"]
    (tmp_path / "subset.txt").write_text("\n".join(names) + "\n")
    opts = ["DATA.DATASET", "imagenet2012", "DATA.DATA_PATH", str(image_folder), "MODEL.NUM_CLASSES", 3]
    run = tiny_run("finetune", *opts, "DATA.TRAIN_LIST", str(tmp_path / "subset.txt"))
    source = loaders.open_split(run, "train", "label")
    assert [Path(source.describe(index)).name for index in range(len(source))] == names
    assert source.labels.tolist() == [0, 1, 2]
    assert len(loaders.open_split(run, "val", "label")) == 12
    (tmp_path / "subset.txt").write_text("0 0.jpg\nnowhere.jpg\n")
    run.sources.clear()
    with pytest.raises(ValueError, match="DATA.TRAIN_LIST .*not one image of the train split each: nowhere.jpg"):
        loaders.open_split(run, "train", "label")
