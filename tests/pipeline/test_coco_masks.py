"""COCO's polygons and run lengths as masks, against pixel centres and by hand."""

import json

import numpy as np
import pytest
from PIL import Image

import datasets
from config import get_config
from errors import UserError
from methods import segmentation
from pipeline.coco_masks import _decode_runs, _unpack_counts, draw_segmentation, fill_polygon
from tools import check_dataset

pytestmark = pytest.mark.quick


def by_pixel_centres(points, size_hw):
    """Count for each centre how many edges a ray to the right crosses."""
    inside = np.zeros(size_hw, bool)
    for row, column in np.ndindex(*size_hw):
        x, y, crossed = column + 0.5, row + 0.5, 0
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if (y0 > y) != (y1 > y):
                crossed += x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
        inside[row, column] = crossed % 2
    return inside


@pytest.mark.parametrize("seed", range(6))
def test_polygons_cover_the_centres_inside(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, 24, (rng.integers(3, 9), 2))  # crosses itself and the border
    assert np.array_equal(fill_polygon(points, (17, 21)), by_pixel_centres(points, (17, 21)))
    square = np.array([[2, 3], [7, 3], [7, 5], [2, 5]], float)
    expected = np.zeros((8, 9), bool)
    expected[3:5, 2:7] = True
    assert np.array_equal(fill_polygon(square, (8, 9)), expected)


def pack(counts):
    """Pack counts as COCO's tools do."""
    text = ""
    for index, count in enumerate(counts):
        value, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + (bits | (32 if more else 0)))
    return text


def test_run_lengths_go_down_the_columns():
    covered = np.random.default_rng(0).random((7, 5)) < 0.5
    covered[:, 2] = True
    flat, counts, current = covered.T.ravel(), [0], False
    for value in flat:
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    assert np.array_equal(_decode_runs({"size": [7, 5], "counts": counts}, (7, 5)), covered)
    assert _unpack_counts(pack(counts)) == counts
    assert np.array_equal(draw_segmentation({"size": [7, 5], "counts": pack(counts)}, (7, 5)), covered)
    large = [70000, 3, 123456, 5, 1, 999999]
    assert _unpack_counts(pack(large)) == large


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[1, 2, 3, 4]], "at least three x, y"),
        ([[1, 2, 3, 4, 5, float("nan")]], "at least three x, y"),
        ([["a"] * 6], "at least three x, y"),
        ([["1", "2"] * 3], "at least three x, y"),
        ([[0, 0, 10**400, 0, 5, 5]], "at least three x, y"),
        ([[0, 0, 1e308, 0, 5, 5]], "at least three x, y"),
        ("x", "neither polygons nor run lengths"),
        ({"size": [4, 4], "counts": [16]}, "has the size"),
        ({"size": [3, 4], "counts": [13]}, "do not add up"),
        ({"size": [3, 4], "counts": [-1, 13]}, "do not add up"),
        ({"size": [3, 4], "counts": "\x7f"}, "damaged"),
        ({}, "has the size None"),
    ],
)
def test_what_cannot_be_drawn_is_named(segmentation, said):
    with pytest.raises(ValueError, match=said):
        draw_segmentation(segmentation, (3, 4))


def write_coco(root, *, file="annotations/instances_train2017.json", folder="train2017", **changes):
    table = {
        "images": [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}]
        + [{"id": 3, "file_name": "b.png", "height": 4, "width": 4}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]},
            {"id": 2, "image_id": 7, "category_id": 2, "segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]]},
            {"id": 3, "image_id": 3, "category_id": 90, "segmentation": {"size": [4, 4], "counts": [4, 8, 4]}},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 2, "name": "bicycle"}],
    } | changes
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(table))
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, size in (("a.png", (8, 6)), ("b.png", (4, 4))):
        Image.new("RGB", size).save(root / folder / name)
    return root


def open_train(root):
    return datasets.open_source("coco_polygons", str(root), "train", num_classes=None, needs="mask")


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/train.json", "images"),
        ("train.json", "images/train"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_later_annotations_cover_earlier_ones(tmp_path, file, folder):
    source = open_train(write_coco(tmp_path, file=file, folder=folder))
    assert source.class_names == ["background", "bicycle", "toothbrush"]
    assert source.count_classes() == 3
    expected = np.zeros((6, 8), np.int16)
    expected[:4, :4], expected[2:6, 2:8] = 2, 1
    assert np.array_equal(source.mask(0), expected)
    columns = np.zeros((4, 4), np.int16)
    columns[:, 1:3] = 2
    assert np.array_equal(source.mask(1), columns)
    assert source.check(num_classes=None, channels=3) == []
    source.use_class_names(["toothbrush", "background", "chair", "bicycle"])
    assert np.array_equal(source.mask(1), np.where(columns == 2, 0, 1))
    with pytest.raises(UserError, match="were not trained: background"):
        source.use_class_names(["toothbrush", "bicycle"])


def test_every_data_set_can_be_named():
    for name in datasets.NAMES:
        assert name == get_config(None, ["DATA.DATASET", name]).DATA.DATASET


def test_val_has_the_labels_of_train(tmp_path):
    """Ids that stand for other classes in val are put in train's order; classes that train lacks are refused."""
    swapped = [{"id": 2, "name": "toothbrush"}, {"id": 90, "name": "bicycle"}]
    annotations = [{"id": 1, "image_id": 7, "category_id": 2, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}]
    write_coco(tmp_path)
    file = "annotations/instances_val2017.json"
    write_coco(tmp_path, file=file, folder="val2017", categories=swapped, annotations=annotations)
    config = get_config(None, ["DATA.DATASET", "coco_polygons", "DATA.DATA_PATH", str(tmp_path)])
    train, val = segmentation.open_splits(config)
    assert val.class_names == train.class_names
    assert (val.mask(0) == train.class_names.index("toothbrush")).all()
    horses = [{"id": 2, "name": "horse"}]
    write_coco(tmp_path, file=file, folder="val2017", categories=horses, annotations=annotations)
    with pytest.raises(UserError, match="were not trained: horse"):
        segmentation.open_splits(config)
    report = check_dataset.main(["-dataset", "coco_polygons", "-data_path", str(tmp_path)])
    assert report != 0


def test_damaged_tables_are_named(tmp_path):
    images = [{"id": 7, "file_name": "a.png", "height": 6, "width": 8}]
    categories = [{"id": 2, "name": "bicycle"}]
    for changes, said in (
        ({"images": []}, "lists no images"),
        ({"images": [{"id": 7, "file_name": "a.png"}]}, "'height' is missing"),
        ({"images": [{**images[0], "height": 1 << 20, "width": 1 << 20}]}, "a.png has 1048576 x 1048576 pixels"),
        ({"images": images * 2}, "images share an id"),
        ({"images": [{**images[0], "file_name": "../a.png"}]}, "is in none of|outside"),
        ({"images": [{**images[0], "file_name": "c.png"}]}, "c.png is in none of"),
        ({"categories": [*categories, {"id": 2, "name": "car"}]}, "share an id or a name"),
        ({"categories": [{"id": 1, "name": "background"}]}, "or one is called background"),
        ({"annotations": {}}, "one of its lists is missing"),
        ({"annotations": [{"id": 1}]}, "'image_id' is missing"),
        ({"images": [{**images[0], "height": 10**400}]}, "a.png has"),
        ({"images": [{**images[0], "height": 20.7}]}, "height 20.7, which must be an integer"),
        ({"categories": [{"id": "2", "name": "bicycle"}]}, "id '2', which must be an integer"),
        ({"categories": [{"id": 2, "name": None}]}, "name None, which must be a text"),
        ({"annotations": [{"id": 1, "image_id": "7", "category_id": 2}]}, "image_id '7', which must be an integer"),
    ):
        with pytest.raises(UserError, match=said):
            open_train(write_coco(tmp_path, **changes))
    with pytest.raises(UserError, match="no annotations of the split val"):
        datasets.open_source("coco_polygons", str(tmp_path), "val", num_classes=None, needs="mask")
    strange = {"id": 9, "image_id": 7, "category_id": 5, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    two = [strange, {**strange, "category_id": 2, "segmentation": []}]
    with pytest.raises(UserError, match="all 2 annotations are of no listed image or category"):
        open_train(write_coco(tmp_path, annotations=two))
    drawn = {"id": 4, "image_id": 3, "category_id": 2, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    source = open_train(write_coco(tmp_path, annotations=[*two, drawn]))
    assert "2 annotations are of no listed image or category" in source.notes[0]
    assert not source.mask(0).any()
