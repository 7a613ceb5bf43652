"""Pairs and neighbours among many rows, against all cosines at once."""

import numpy as np
import pytest

from measures.curation import similar_rows
from measures.curation.similar_rows import Rows, agreement, nearest, pairs_above

pytestmark = pytest.mark.quick


def clustered(count, width=32, clusters=20, seed=0):
    """Return rows of length 1 around some centres, and pairs of which one is nearly the other."""
    rng = np.random.default_rng(seed)
    centres, own = rng.standard_normal((clusters, width)), rng.integers(clusters, size=count)
    rows = centres[own] + rng.standard_normal((count, width))
    chosen = rng.permutation(count)[: count // 5]
    one, two = chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :][: len(chosen) // 2]
    rows[two] = rows[one] + 0.05 * rng.standard_normal((len(one), width))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32), set(map(tuple, np.sort(np.stack([one, two], axis=1), axis=1).tolist()))


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_pairs_are_those_of_brute_force(is_mirrored):
    unit, planted = clustered(2500)
    queries = np.roll(unit, 7, axis=0) if is_mirrored else None
    cosines = (unit if queries is None else queries) @ unit.T
    np.fill_diagonal(cosines, 0.0)
    wanted = {tuple(sorted(pair)) for pair in np.argwhere(cosines > 0.9).tolist()}
    pairs, values, threshold = pairs_above(Rows(unit), 0.9, queries)
    assert [tuple(pair) for pair in pairs.tolist()] == sorted(wanted), "sorted, and each once"
    assert threshold == 0.9
    if not is_mirrored:
        assert planted <= wanted
        np.testing.assert_allclose(values, cosines[tuple(pairs.T)], atol=1e-6)  # float32 sums of 32 terms


def test_more_pairs_than_allowed_raise_the_threshold():
    unit, _ = clustered(600)
    pairs, values, threshold = pairs_above(Rows(unit), 0.0, most=1000)
    assert len(pairs) <= 1000
    assert threshold > 0.0
    assert values.min() >= threshold


def test_neighbours_are_those_of_brute_force_and_none_is_made_up():
    unit, _ = clustered(700)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2.0)
    places, _ = nearest(Rows(unit), 6)
    np.testing.assert_array_equal(places, np.argsort(-cosines, axis=1, kind="stable")[:, :6])
    left_out = np.full(5, 3)
    own, _ = nearest(Rows(unit), 6, unit[:5], left_out)
    assert 3 not in own
    assert own[0, 0] == 0, "another query's own row is not left out"
    few, _ = nearest(Rows(unit[:4]), 6)
    assert (few[:, 3:] == -1).all()
    assert (few[:, :3] >= 0).all()


def test_lists_find_nearly_all_of_what_brute_force_finds():
    unit, planted = clustered(6000)
    rows = Rows(unit.astype(np.float16), exact=False)
    pairs, _, _ = pairs_above(rows, 0.9)
    found = set(map(tuple, pairs.tolist()))
    assert len(found & planted) >= 0.98 * len(planted)
    places, _ = nearest(rows, 10)
    share = agreement(rows, places)
    exact, _ = nearest(Rows(unit), 10)
    true = np.mean([len(np.intersect1d(one, other)) / 10 for one, other in zip(places, exact, strict=True)])
    assert abs(share - true) < 0.05, "256 of 6,000 rows tell the share to 0.05"
    assert share > 0.8
    again, _, _ = pairs_above(Rows(unit.astype(np.float16), exact=False), 0.9)
    np.testing.assert_array_equal(pairs, again)


def test_lists_are_used_for_many_rows_only(monkeypatch):
    monkeypatch.setattr(similar_rows, "EXACT", 100)
    unit, _ = clustered(300)
    assert Rows(unit[:100]).is_exact
    assert not Rows(unit).is_exact
