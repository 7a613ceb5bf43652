"""Pictures of a cross decoder, which has no prediction for visible patches."""

import numpy as np
import pytest

from methods import dispatch
from pages import drawing, reconstruction

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_visible_patches_of_a_prediction(tiny_run, kind):
    run = tiny_run("pretrain", "MODEL.DECODER.KIND", kind)
    model = dispatch.build_task(run).model
    model.eval()
    drawn = reconstruction.reconstruct(model, run.config, drawing.draw_images(run.config, 2))
    original, masked, prediction, filled, _ = drawn.panels
    visible = (masked == original).all(axis=-1)
    assert 0 < visible.mean() < 0.5
    assert ("predicts hidden patches alone" in drawn.caption) == (kind == "cross")
    assert ("carries no loss where a patch is visible" in drawn.caption) == (kind == "self")
    assert np.array_equal(prediction, filled) == (kind == "cross")
    assert (filled[visible] == original[visible]).all()
