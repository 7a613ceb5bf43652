"""Pictures of what models see: pixels, masks and attention, by hand and by NumPy."""

import re

import pytest
from PIL import Image

from errors import UserError
from tools import visualise

pytestmark = pytest.mark.quick


def test_page_and_pictures(trained, image_folder, tmp_path):
    run, page = trained(), tmp_path / "page.html"
    photo = next((image_folder / "val" / "dog").iterdir())
    flags = [str(run), str(photo), str(image_folder / "val" / "cat"), "-out", str(page), "-num", "3"]
    assert visualise.main([*flags, "-mask_ratio", "0.5", "0.9", "-mask", "block", "-same_mask", "-attention"]) == page
    text = page.read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["Reconstructions", "Attention"]
    assert text.count("data:image/png;base64") == 3 * (1 + 2 * 3) + 3 * (2 + 4)  # original, three per ratio; attention
    assert text.count(photo.name) > 2
    assert re.findall("<b>(.*?)</b>", text)[:5] == [
        "original",
        "50% hidden",
        "reconstruction",
        "patch means",
        "90% hidden",
    ]
    assert re.search(r"alone; 50% hidden: \d\.\d+ and \d\.\d+, 90% hidden: \d\.\d+ and \d\.\d+\.", text)
    assert "trained on normalised pixels" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    out = tmp_path / "x.png"
    plain = trained("pretrain", "MODEL.NORM_PIX_LOSS", False)
    visualise.main([str(plain), "-out", str(out), "-num", "2"])
    assert Image.open(out).size == (5 * (6 * 16 + 2), 24 + 2 * (6 * 16 + 2))
    visualise.main([str(plain), "-out", str(out), "-num", "1", "-attention"])
    assert Image.open(out).size == (6 * (6 * 16 + 2), 2 * (24 + 6 * 16 + 2)), "reconstruction above, attention below"
    visualise.main([str(trained("finetune")), "-out", str(out), "-num", "2", "-attention"])
    assert Image.open(out).size[1] == 24 + 2 * (6 * 16 + 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-num", "0"], "-num 0"),
        (["-mask_ratio", "1.5"], "-mask_ratio 1.5"),
        (["-out", "x"], "must be a .png or .html file"),
        (["-out", "nowhere/x.png"], "in a directory that exists"),
        (["-dataset", "mnist"], "must be one of imagenet2012"),
        (["-dataset", "folder", "-data_path", "nowhere"], "no such directory"),
        (["nowhere.jpg"], "no such file or directory"),
        (["-attention", "-layer", "9"], "layers 1 to"),
        (["-mask_ratio", "0.99"], "keeps 0 of 16 patches"),
    ],
)
def test_bad_arguments_are_named(trained, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        visualise.main([str(trained()), "-out", str(tmp_path / "x.png"), *flags])


def test_seeds_are_numbers_from_zero(trained, capsys):
    with pytest.raises(SystemExit):
        visualise.main([str(trained()), "-seed", "-1"])
    assert "'-1' is not an integer from 0" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out_on_request(trained, tmp_path, image_folder):
    bad = tmp_path / "0.jpg"
    bad.write_bytes(b"no image")
    flags = [str(trained()), str(bad), str(image_folder / "val" / "dog"), "-out", str(tmp_path / "x.png"), "-num", "3"]
    with pytest.raises(UserError, match=r"0\.jpg: cannot be read .*DATA\.BAD_IMAGES skip"):
        visualise.main(flags)
    visualise.main([*flags, "-opts", "DATA.BAD_IMAGES", "skip"])
    assert Image.open(tmp_path / "x.png").size[1] == 24 + 2 * (6 * 16 + 2)


def test_reconstructing_without_a_decoder_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="reconstructing needs the decoder"):
        visualise.main([str(trained("finetune")), "-out", str(tmp_path / "x.png")])
