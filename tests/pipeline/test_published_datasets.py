"""Data sets for transfer, on small trees of exactly the published layouts."""

import json
import os

import numpy as np
import pytest
import scipy.io
from PIL import Image

import datasets
from config import get_config
from errors import UserError
from methods import dispatch
from pipeline import published_datasets
from training.log import read_log

pytestmark = pytest.mark.quick


def images(root, *names):
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 20 * number, np.uint8)).save(root / name)


def text(file, *lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def flowers(root):
    images(root, *(f"jpg/image_{number:05d}.jpg" for number in range(1, 6)))
    scipy.io.savemat(root / "imagelabels.mat", {"labels": np.array([[2, 1, 3, 1, 2]])})
    scipy.io.savemat(
        root / "setid.mat", {"trnid": np.array([[2, 5]]), "valid": np.array([[3]]), "tstid": np.array([[1, 4]])}
    )
    return {
        "train": [("image_00002", 0), ("image_00005", 1), ("image_00003", 2)],
        "val": [("image_00001", 1), ("image_00004", 0)],
    }


def pets(root):
    images(root / "images", "Abyssinian_1.jpg", "great_pyrenees_7.jpg", "Abyssinian_2.jpg")
    text(root / "annotations" / "trainval.txt", "Abyssinian_1 1 1 1", "great_pyrenees_7 2 2 9")
    text(root / "annotations" / "test.txt", "Abyssinian_2 1 1 1")
    return {"train": [("Abyssinian_1", 0), ("great_pyrenees_7", 1)], "val": [("Abyssinian_2", 0)]}


def cars_of(rows, name):
    kinds = [("bbox_x1", "O"), ("class", "O"), (name, "O"), ("test", "O")]
    array = np.empty((1, len(rows)), dtype=kinds)
    for index, (label, path, is_test) in enumerate(rows):
        array[0, index] = (np.array([[1]]), np.array([[label]]), path, np.array([[is_test]]))
    return array


def cars_joint(root):
    images(root / "car_ims", "000001.jpg", "000002.jpg", "000003.jpg")
    rows = [(2, "car_ims/000001.jpg", 0), (1, "car_ims/000002.jpg", 0), (2, "car_ims/000003.jpg", 1)]
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], dtype=object)
    scipy.io.savemat(root / "cars_annos.mat", {"annotations": cars_of(rows, "relative_im_path"), "class_names": names})
    return {"train": [("000001", 1), ("000002", 0)], "val": [("000003", 1)]}


def cars_split(root):
    images(root / "cars_train", "00001.jpg", "00002.jpg")
    images(root / "cars_test", "00001.jpg")
    (root / "devkit").mkdir()
    train = cars_of([(2, "00001.jpg", 0), (1, "00002.jpg", 0)], "fname")
    scipy.io.savemat(root / "devkit" / "cars_train_annos.mat", {"annotations": train})
    test = cars_of([(1, "00001.jpg", 1)], "fname")
    scipy.io.savemat(root / "cars_test_annos_withlabels.mat", {"annotations": test})
    return {"train": [("00001", 1), ("00002", 0)], "val": [("00001", 0)]}


def aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    images(data / "images", "1514522.jpg", "0034309.jpg", "0056978.jpg")
    text(data / "variants.txt", "707-320", "727-200", "F/A-18")
    text(data / "images_variant_trainval.txt", "1514522 727-200", "0034309 F/A-18")
    text(data / "images_variant_test.txt", "0056978 707-320")
    return {"train": [("1514522", 1), ("0034309", 2)], "val": [("0056978", 0)]}


def inaturalist(year):
    def make(root):
        names = [f"train_val{year}/Aves/{category}/{image}.jpg" for category, image in ((7, "a"), (3, "b"), (7, "c"))]
        images(root, *names)
        categories = [{"id": 7, "name": "Turdus merula"}, {"id": 3, "name": "Parus major"}]
        for split, chosen in (("train", [0, 1]), ("val", [2])):
            content = {
                "images": [{"id": 10 + i, "file_name": names[i]} for i in chosen],
                "annotations": [{"id": i, "image_id": 10 + i, "category_id": [7, 3, 7][i]} for i in chosen],
                "categories": categories,
            }
            (root / f"{split}{year}.json").write_text(json.dumps(content))
        return {"train": [("a", 1), ("b", 0)], "val": [("c", 1)]}

    return make


def places205(root):
    images(
        root / "data" / "vision" / "torralba" / "deeplearning" / "images256", "a/abbey/gsun_1.jpg", "y/yard/gsun_2.jpg"
    )
    text(root / "trainvalsplit_places205" / "train_places205.csv", "a/abbey/gsun_1.jpg 0", "y/yard/gsun_2.jpg 1")
    text(root / "trainvalsplit_places205" / "val_places205.csv", "y/yard/gsun_2.jpg 1")
    return {"train": [("gsun_1", 0), ("gsun_2", 1)], "val": [("gsun_2", 1)]}


def places365(root):
    images(root / "data_256_standard", "a/airfield/00000001.jpg", "b/bar/00000002.jpg")
    images(root / "val_256", "Places365_val_00000001.jpg")
    text(root / "places365_train_standard.txt", "/a/airfield/00000001.jpg 0", "/b/bar/00000002.jpg 1")
    text(root / "places365_val.txt", "Places365_val_00000001.jpg 1")
    text(root / "categories_places365.txt", "/a/airfield 0", "/b/bar 1")
    return {"train": [("00000001", 0), ("00000002", 1)], "val": [("Places365_val_00000001", 1)]}


LAYOUTS = [
    ("flowers102", flowers),
    ("pets", pets),
    ("cars", cars_joint),
    ("cars", cars_split),
    ("aircraft", aircraft),
    *((f"inat{year}", inaturalist(year)) for year in (2017, 2018, 2019)),
    ("places205", places205),
    ("places365", places365),
]


@pytest.mark.parametrize(("name", "make"), LAYOUTS, ids=lambda value: getattr(value, "__name__", value))
def test_published_layouts(tmp_path, name, make):
    expected = make(tmp_path)
    for split, pairs in expected.items():
        source = datasets.open_source(name, str(tmp_path), split, num_classes=0)
        assert [(path.stem, label) for path, label in zip(source.paths, source.labels.tolist(), strict=True)] == pairs
        assert source.check(num_classes=None, channels=3) == []
        source.image(0)


def test_names_of_classes(tmp_path):
    for name, make, names in (
        ("pets", pets, ["Abyssinian", "great_pyrenees"]),
        ("aircraft", aircraft, ["707-320", "727-200", "F/A-18"]),
        ("inat2018", inaturalist(2018), ["Parus major", "Turdus merula"]),
        ("places365", places365, ["/a/airfield", "/b/bar"]),
    ):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
        assert datasets.open_source(name, str(tmp_path / name), "train", num_classes=0).class_names == names


@pytest.mark.parametrize(("name", "make"), LAYOUTS, ids=lambda value: getattr(value, "__name__", value))
def test_missing_and_damaged_files_are_named(tmp_path, name, make):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=str(tmp_path / "empty")):
        datasets.open_source(name, str(tmp_path / "empty"), "train", num_classes=0)
    make(tmp_path)
    indices = [
        path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".mat", ".txt", ".csv", ".json")
    ]
    for file in indices:
        whole = file.read_bytes()
        for damaged in (b"", b"\x00\xff\x00", whole[: len(whole) // 2], b"[1, 2]", b"{}"):
            file.write_bytes(damaged)
            for split in ("train", "val"):
                assert str(tmp_path) in complaint(name, tmp_path, split)
        file.write_bytes(whole)


def complaint(name, root, split):
    """Return the error of opening a split, or the directory if there is none."""
    try:
        source = datasets.open_source(name, str(root), split, num_classes=0)
        source.check(num_classes=None, channels=3)
    except UserError as error:
        return str(error)
    return str(root)


def test_an_index_cannot_reach_outside(tmp_path):
    places365(tmp_path)
    text(tmp_path / "places365_val.txt", "../../secret.jpg 1")
    with pytest.raises(UserError, match="is outside of the data set"):
        datasets.open_source("places365", str(tmp_path), "val", num_classes=0)


def test_the_number_of_classes_follows_the_data(tiny_run, tmp_path):
    (tmp_path / "aircraft").mkdir()
    aircraft(tmp_path / "aircraft")
    data = tmp_path / "aircraft" / "fgvc-aircraft-2013b" / "data"
    for part in ("trainval", "test"):
        text(data / f"images_variant_{part}.txt", "1514522 727-200", "0034309 F/A-18", "0056978 707-320")
    opts = ["DATA.DATASET", "aircraft", "DATA.DATA_PATH", str(tmp_path / "aircraft"), "MODEL.NUM_CLASSES", None]
    options = [*opts, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 3, "MODEL.GLOBAL_POOL", False]
    run = tiny_run("linearprobe", *options, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    saved = get_config(run.directory / "config.yaml")
    assert saved.MODEL.NUM_CLASSES == 3
    assert get_config(run.directory / "latest" / "config.yaml").MODEL.NUM_CLASSES == 3
    assert read_log(run.directory)[-1]["event"] == "eval"
    labels = published_datasets.READERS["aircraft"](tmp_path / "aircraft", "val")
    labels.class_names, labels.labels = None, np.array([-1])
    with pytest.raises(UserError, match="has no labels"):
        labels.count_classes()


def test_a_model_needs_a_number(tiny_config):
    from transformer import build_transformer

    with pytest.raises(UserError, match=r"MODEL\.NUM_CLASSES=None"):
        build_transformer(tiny_config("finetune", "MODEL.NUM_CLASSES", None))


@pytest.mark.parametrize("labels", [[0.5, 1, 2], [np.nan, 1, 2], [-4, 1, 2], ["a", "b", "c"], [10**7, 1, 2]])
def test_mat_labels_of_another_kind_are_refused(tmp_path, labels):
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": np.array(labels)})
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": [1], "valid": [2], "tstid": [3]})
    with pytest.raises(UserError, match="its labels are (not integers|not from 1)"):
        datasets.open_source("flowers102", str(tmp_path), "val", num_classes=None)


def test_a_mat_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    from pipeline import published_datasets

    monkeypatch.setattr(published_datasets, "_MOST_MAT_BYTES", 1 << 20)
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": np.ones(1 << 20)}, do_compression=True)
    assert (tmp_path / "imagelabels.mat").stat().st_size < 1 << 16
    with pytest.raises(UserError, match="unpacks to more than 1 MiB"):
        datasets.open_source("flowers102", str(tmp_path), "val", num_classes=None)


@pytest.mark.parametrize("name", ["fifo", "device"])
def test_pipes_and_devices_are_no_index(tmp_path, name):
    from config import get_config

    def put(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path) if name == "fifo" else path.symlink_to("/dev/zero")

    put(tmp_path / "annotations" / "test.txt")
    put(tmp_path / "val2018.json")
    put(tmp_path / "imagelabels.mat")
    for dataset in ("pets", "inat2018", "flowers102"):
        with pytest.raises(UserError, match="not a regular file"):
            datasets.open_source(dataset, str(tmp_path), "val", num_classes=None)
    put(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        get_config(tmp_path / "a.yaml")
