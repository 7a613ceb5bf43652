"""The reference of keys: everything there is, with its default and meaning."""

import pytest

from config import METHODS, SHARED_KEYS, get_config, get_value
from errors import UserError
from strict_config import all_keys
from tools import keys

pytestmark = pytest.mark.quick


def test_all_keys_of_all_methods_are_printed(capsys):
    names = keys.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(names)
    for method in METHODS:
        config = get_config(None, ["MODEL.TYPE", method])
        assert set(all_keys(config)) <= set(names)
        printed = {line.split(" = ")[0]: line for line in lines[::2] if line.split(" = ")[0] in SHARED_KEYS}
        for name in printed.keys() - {"MODEL.TYPE"}:
            assert printed[name].startswith(f"{name} = {get_value(config, name)!r}")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("erase_prob", ["TRAIN.RANDOM_ERASE_PROB"]),
        ("EXIF", ["DATA.EXIF_TRANSPOSE"]),  # in name and meaning
        ("layerscale", ["MODEL.ENCODER.LAYER_SCALE"]),  # in the meaning only
        ("wsp.balance", ["WSP.BALANCE", "WSP.MOST_REPEATS"]),
    ],
)
def test_a_word_selects_by_name_or_meaning(word, expected):
    assert keys.main([word]) == expected


def test_what_paddlevit_has_is_not_marked_new(capsys):
    keys.main(["TRAIN.BASE_LR"])
    assert capsys.readouterr().out.split("\n")[0].split("    ") == ["TRAIN.BASE_LR = 0.00015", "from 0 to 1e6"]
    keys.main(["SAVE_FREQ_STEPS"])
    assert capsys.readouterr().out.split("\n")[0].endswith("    new")


def test_a_word_that_no_key_has_gets_suggestions():
    with pytest.raises(UserError, match=r"MASKRATIO: no key has this word.*MODEL.MASK_RATIO"):
        keys.main(["MASKRATIO"])
