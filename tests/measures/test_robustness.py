"""ImageNet benchmarks of robustness: classes, and the mean corruption error by hand."""

import pytest

from measures import robustness

pytestmark = pytest.mark.quick


def test_mean_corruption_error_by_hand():
    """Twice AlexNet's error on one corruption, half on another, as much on the 13 others: (2 + 0.5 + 13) / 15."""
    errors = {name: [value] * 5 for name, value in robustness.ALEXNET_ERRORS.items()}
    errors["fog"] = [0.1, 0.2, 0.3, 0.4, 0.5]  # mean 0.3
    expected = (14 + 0.3 / 0.819324) / 15
    assert robustness.mean_corruption_error(errors)["mce"] == pytest.approx(100 * expected, rel=1e-12)
    plain = (sum(robustness.ALEXNET_ERRORS.values()) - 0.819324 + 0.3) / 15
    assert robustness.mean_corruption_error(errors)["error"] == pytest.approx(100 * plain, rel=1e-12)


def test_classes_of_imagenet():
    classes = robustness.imagenet_classes()
    assert len(classes) == len({wnid for wnid, _ in classes}) == 1000
    assert classes[0] == ("n01440764", "tench")
    assert [wnid for wnid, _ in classes] == sorted(wnid for wnid, _ in classes)
