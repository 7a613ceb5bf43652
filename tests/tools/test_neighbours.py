import numpy as np
import pytest
from PIL import Image

from methods import dispatch
from tools import neighbours

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    from config import get_config
    from tests.conftest import MODES, TINY
    from training.log import RunLog
    from training.run import Run

    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("runs") / f"run{seed}"
        folder.mkdir()
        opts = [*TINY, *MODES["pretrain"], "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0, "SEED", seed]
        config = get_config(None, opts)
        (folder / "config.yaml").write_text(config.dump())
        dispatch.train_or_evaluate(Run(config, folder, RunLog(folder, quiet=True)))
        found.append(str(folder))
    return found


def test_neighbours_are_the_most_similar_others():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 5))
    cosine = np.corrcoef(np.hstack([features, -features]))  # without means: rows of opposite halves
    found = neighbours.nearest(features, np.array([4, 9]), 3)
    for row, query in zip(found, (4, 9), strict=True):
        others = [index for index in range(30) if index != query]
        assert row.tolist() == sorted(others, key=lambda index: -cosine[query, index])[:3]


def test_the_picture_has_a_row_per_image_and_a_column_per_neighbour(runs, tmp_path, capsys):
    out = neighbours.main([*runs, "-num", "3", "-k", "2", "-bank", "40", "-out", str(tmp_path / "n.png")])
    side = 64 + 2 * 3 + 2  # picture, frame, gap
    with Image.open(out) as picture:
        assert picture.size == (5 * side, 24 + 3 * side), "below the headings"
        colours = {
            picture.getpixel((side * column + 1, 24 + side * row + 1)) for row in range(3) for column in range(1, 5)
        }
        assert colours <= {neighbours._GREEN, neighbours._RED}
        assert picture.getpixel((1, 25)) == neighbours._WHITE
    said = capsys.readouterr().out
    assert "run0: " in said
    assert "of the 2 nearest of all 40 have the image's class" in said
    page = neighbours.main([runs[0], "-num", "2", "-k", "1", "-bank", "20", "-out", str(tmp_path / "n.html")])
    assert "<b>image</b>" in page.read_text()


@pytest.mark.parametrize(("flags", "said"), [(["-k", "40"], "must be from 1 to 39"), (["-num", "0"], "-num must")])
def test_numbers_that_make_no_sense_are_refused(runs, tmp_path, flags, said):
    with pytest.raises(ValueError, match=said):
        neighbours.main([runs[0], "-bank", "40", "-out", str(tmp_path / "n.png"), *flags])
