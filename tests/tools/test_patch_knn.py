"""Segmentation by neighbours of patches: against brute force, and on images whose patches are known."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from errors import UserError
from measures import neighbours, patch_labels
from methods import segmentation_scores
from pipeline import scenes
from tools import patch_knn

pytestmark = pytest.mark.quick
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
@pytest.mark.parametrize("block", [7, 16384])
def test_neighbours_are_those_of_brute_force(monkeypatch, distance, block):
    monkeypatch.setattr(neighbours, "_BANK", block)
    bank, queries = RNG.normal(1, 1, (50, 6)).astype(np.float32), RNG.normal(1, 1, (300, 6)).astype(np.float32)
    if distance == "cosine":
        units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (queries, bank)]
        expected = np.argsort(-(units[0] @ units[1].T), axis=1)[:, :5]
    else:
        expected = np.argsort(((queries[:, None] - bank[None]) ** 2).sum(axis=-1), axis=1)[:, :5]
    blocks = neighbours.search(bank, queries, 5, None, distance)
    places, likeness = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    assert np.array_equal(places, expected)
    assert (np.diff(likeness, axis=1) <= 0).all()


def test_votes_are_counted_and_ties_go_to_the_smaller():
    labels = RNG.integers(-1, 4, (40, 7, 9)).astype(np.int16)
    expected = np.empty((40, 9), int)
    for row in range(40):
        for pixel in range(9):
            values, counts = np.unique(labels[row, :, pixel], return_counts=True)
            expected[row, pixel] = values[counts.argmax()]  # unique sorts: the first of equal ones is the smaller
    assert np.array_equal(patch_labels.vote(labels), expected)


def test_patches_are_cut_and_joined():
    masks = RNG.integers(0, 5, (3, 8, 12))
    labels = patch_labels.cut(masks, 4)
    assert np.array_equal(labels[7], masks[1, 0:4, 4:8].ravel())
    assert np.array_equal(patch_labels.join(labels, (2, 3), 4), masks)
    shares = patch_labels.class_shares(np.array([[0, 0, 1, -1], [-1, -1, -1, -1]]), 3)
    assert_allclose(shares, [[2 / 3, 1 / 3, 0], [0, 0, 0]], rtol=1e-6)


def test_shares_are_blended_by_a_softmax():
    shares, likeness = RNG.random((4, 5, 3)).astype(np.float32), RNG.normal(0, 0.1, (4, 5)).astype(np.float32)
    weights = np.exp(likeness / 0.02) / np.exp(likeness / 0.02).sum(axis=1, keepdims=True)
    assert_allclose(patch_labels.blend(shares, likeness, 0.02), np.einsum("mk,mkc->mc", weights, shares), rtol=1e-4)


def test_votes_of_no_class_are_wrong():
    truth, predicted = np.array([0, 0, 1, -1]), np.array([0, -1, 1, 1])
    found = segmentation_scores.means(segmentation_scores.confusion(truth, predicted, 2))
    assert found["miou"] == pytest.approx(75.0)
    assert found["aacc"] == pytest.approx(200 / 3)


@pytest.fixture
def flat(tmp_path):
    """Return a data set of squares of plain colours, a colour for each class; 255 in a corner of each mask."""
    colours = np.array([[250, 20, 20], [20, 250, 20], [20, 20, 250]], np.uint8)
    for split, count in (("train", 12), ("val", 4)):
        for index in range(count):
            labels = RNG.integers(0, 3, (4, 4)).repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
            pixels = colours[labels]
            labels[:2, :2] = 255
            for kind, array in (("images", pixels), ("masks", labels)):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(tmp_path / split / kind / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize("protocol", ["capi", "hummingbird"])
def test_plain_squares_are_found_by_an_untrained_encoder(trained, flat, tmp_path, protocol):
    """The first block of an untrained encoder still has the colour of each patch."""
    flags = [str(trained()), "-dataset", "masks", "-data_path", str(flat), "-protocol", protocol, "-layer", "1"]
    flags += ["-opts", "MODEL.NUM_CLASSES", "3"]
    figures = patch_knn.main([*flags, "-k", "3", "-json", str(tmp_path / "x.json")])
    assert figures["miou"] > (95 if protocol == "capi" else 60)  # enlarged bilinearly, borders are lost
    assert (tmp_path / "x.json").is_file()


def test_wrong_numbers_and_sets_are_told(trained, monkeypatch):
    run = str(trained())
    for flags, said in (
        (["-k", "0"], "-k must be at least 1"),
        (["-protocol", "hummingbird", "-k", "1", "2"], "hummingbird takes one"),
        (["-dataset", "digits"], "has no masks"),
    ):
        with pytest.raises(UserError, match=said):
            patch_knn.main([run, *flags])
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 6, "val": 2})
    found = patch_knn.main([run, "-dataset", "scenes", "-num", "5", "-opts", "MODEL.NUM_CLASSES", "8"])
    assert 0 < found["miou"] < 100
    assert found["k"] in (1, 3, 10, 30)
