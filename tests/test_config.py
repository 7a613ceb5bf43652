import time
from pathlib import Path

import pytest
import yaml

import config as config_module
from config import get_config
from errors import UserError
from tests.helpers.recipes import RECIPES, recipe

pytestmark = pytest.mark.quick


def test_defaults_are_frozen():
    config = get_config()
    with pytest.raises(AttributeError):
        config.SEED = 1


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_yaml_loads_and_its_name_tells_its_mode(path):
    config = get_config(path)
    short = {"WEAK_LABELS": "wsp", "IMAGE_TEXT": "lit"}  # as the field calls them
    assert short.get(config.MODEL.TYPE, config.MODEL.TYPE.lower().removesuffix("_tuning")) in path.stem
    assert f"{config.MODEL.PATCH_SIZE}_{config.DATA.IMAGE_SIZE}" in path.stem or path.stem.startswith("digits")


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_yaml_states_only_differences_from_its_base(path, tmp_path):
    values = yaml.safe_load(path.read_text())
    bases = [str(path.resolve().parent / name) for name in values.pop("BASE", [])]
    base_file = tmp_path / "base.yaml"
    base_file.write_text(yaml.safe_dump({"BASE": bases, "MODEL": {"TYPE": get_config(path).MODEL.TYPE}}))
    base = get_config(base_file)

    def walk(values, base, prefix=""):
        for key, value in values.items():
            if isinstance(value, dict):
                walk(value, base[key], f"{prefix}{key}.")
            elif prefix + key not in ("MODEL.TYPE", "MODEL.NAME"):
                assert str(value) != str(base[key]), f"{prefix}{key} repeats {value}"

    walk(values, base)


def longest_chain(path: Path) -> int:
    bases = yaml.safe_load(path.read_text()).get("BASE", [])
    return 1 + max((longest_chain(path.parent / name) for name in bases), default=0)


def test_recipes_build_on_bases_only_and_on_few():
    """A reader opens three files at most, and no recipe changes when another one does."""
    for path in RECIPES.values():
        bases = yaml.safe_load(path.read_text()).get("BASE", [])
        assert all(Path(name).parent.name == "_base" for name in bases), path
        assert longest_chain(path) <= 3, path
    assert len([path for path in Path("configs").iterdir() if path.is_file()]) <= 30


def test_every_base_is_used():
    used = set()
    for path in [*RECIPES.values(), *Path("configs/_base").glob("*.yaml")]:
        used |= {Path(name).name for name in yaml.safe_load(path.read_text()).get("BASE", [])}
    assert used == {path.name for path in Path("configs/_base").glob("*.yaml")}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vit_base_patch16_224_moco", "mae_lite"),
        ("vit_large_patch16_224_contrastive_head", "mae_ct"),
        ("vit_2b_patch14_224_pretrain", "maws"),
        ("vit_base_patch16_224_finetune_pets", "transfer"),
    ],
)
def test_an_old_path_names_the_new_one(old, new):
    with pytest.raises(UserError, match=f"configs/{old}.yaml: is configs/{new}/{old}.yaml now"):
        get_config(f"configs/{old}.yaml")


def test_a_file_that_is_nowhere_has_no_new_path(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        get_config("configs/nowhere.yaml")
    with pytest.raises(UserError, match="No such file"):  # a folder of the user's own
        get_config(tmp_path / "vit_base_patch16_224_moco.yaml")


@pytest.mark.parametrize(
    ("stem", "key", "value"),
    [
        ("vit_base_patch16_224_pretrain", "TRAIN.BASE_LR", 1.5e-4),
        ("vit_base_patch16_224_pretrain", "TRAIN.TOTAL_BATCH_SIZE", 4096),
        ("vit_base_patch16_224_pretrain", "TRAIN.OPTIMIZER.BETAS", [0.9, 0.95]),
        ("vit_huge_patch14_224_pretrain", "MODEL.ENCODER.DEPTH", 32),
        ("vit_base_patch16_224_pretrain_dec1", "MODEL.DECODER.DEPTH", 1),
        ("vit_base_patch16_224_finetune", "TRAIN.LAYER_DECAY", 0.65),
        ("vit_base_patch16_224_finetune", "TRAIN.NUM_EPOCHS", 100),
        ("vit_large_patch16_224_finetune", "TRAIN.LAYER_DECAY", 0.75),
        ("vit_large_patch16_224_finetune", "MODEL.DROPPATH", 0.2),
        ("vit_huge_patch14_224_finetune", "MODEL.DROPPATH", 0.3),
        ("vit_huge_patch14_448_finetune", "DATA.IMAGE_SIZE", 448),
        ("vit_tiny_patch16_224_finetune", "TRAIN.LAYER_DECAY", 0.85),
        ("vit_tiny_patch16_224_pretrain", "MODEL.ENCODER.NUM_HEADS", 12),
        ("vit_small_patch16_224_pretrain", "MODEL.DECODER.EMBED_DIM", 192),
        ("vit_base_patch16_224_linearprobe", "TRAIN.TOTAL_BATCH_SIZE", 16384),
        ("vit_large_patch16_224_linearprobe", "TRAIN.OPTIMIZER.NAME", "LARS"),
    ],
)
def test_recipes_have_the_official_values(stem, key, value):
    node = get_config(f"configs/{stem}.yaml")
    for part in key.split("."):
        node = node[part]
    assert node == value


def test_overrides_win_and_text_becomes_a_value():
    config = get_config(
        None,
        [
            "TRAIN.BASE_LR",
            "1e-3",
            "TRAIN.OPTIMIZER.BETAS",
            "(0.9, 0.99)",
            "TRAIN.GRAD_CLIP",
            "None",
            "MODEL.GLOBAL_POOL",
            "True",
            "DATA.IMAGE_SIZE",
            "[224, 192]",
            "MODEL.DROPPATH",
            0,
        ],
    )
    assert config.TRAIN.BASE_LR == 1e-3
    assert config.TRAIN.OPTIMIZER.BETAS == [0.9, 0.99]
    assert config.TRAIN.GRAD_CLIP is None
    assert config.MODEL.GLOBAL_POOL is True
    assert config.DATA.IMAGE_SIZE == [224, 192]
    assert config.MODEL.DROPPATH == 0.0


def test_a_setting_is_a_pair_or_one_word():
    config = get_config(
        None, ["SEED=3", "TRAIN.BASE_LR", "1e-3", "RUN=a=b", "DATA.CLASS_NAMES=['x=1', 'y']", "EVAL", True]
    )
    assert (config.SEED, config.TRAIN.BASE_LR, config.RUN, config.EVAL) == (3, 1e-3, "a=b", True)
    assert config.DATA.CLASS_NAMES == ["x=1", "y"]
    assert get_config(None, ["RUN="]).RUN == ""
    with pytest.raises(UserError, match="SEED has no value"):
        get_config(None, ["EVAL=True", "SEED"])
    with pytest.raises(UserError, match="unknown configuration key SEEDS; did you mean SEED"):
        get_config(None, ["SEEDS=1"])


def test_paddlevit_yaml_still_loads(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(
        "DATA:\n  IMAGE_SIZE: 224\n  CROP_PCT: 0.875\nMODEL:\n  TYPE: FINETUNE\n  DROPPATH: 0.1\n"
        "TRAIN:\n  BASE_LR: 5e-4\n  END_LR: 1e-6\n  LAYER_DECAY: 0.65\n  OPTIMIZER:\n    NAME: 'AdamWDL'\n"
        "    BETAS: (0.9, 0.999)\n"
    )
    config = get_config(path)
    assert config.TRAIN.BASE_LR == 5e-4
    assert config.TRAIN.OPTIMIZER.BETAS == [0.9, 0.999]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{this}: &{this} [{', '.join([f'*{last}'] * 9)}]\n" for last, this in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"a reference \(\*a\)"),
        ("DATA: &d\n  IMAGE_SIZE: *d\n", r"a reference \(\*d\)"),
        ("SEED: 1" + ":59" * 20000, "SEED is a number of more than 18 digits"),
        ("SEED: 1\nSEED: 2\n", "the key SEED twice"),
        ("TRAIN:\n  BASE_LR: 1.0\n  NUM_EPOCHS: 3\n  BASE_LR: 2.0\n", "the key BASE_LR twice"),
        ("SEED: " + "[" * 100000, "nested more than 50 levels deep|cannot be read as a YAML"),
        ("SEED: " + "1" * (1 << 20), "at most 1,048,576 are sane"),
        ('DATA:\n  DATA_PATH: "a\\0b"\n', "has a NUL in it"),
        ("DATA:\n  DATA_PATH: \xff\n", "cannot be read as a YAML"),
    ],
)
def test_hostile_yaml_is_refused_soon(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    started = time.monotonic()
    with pytest.raises(ValueError, match=message):
        get_config(path)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TRAIN.BASELR", 1], "unknown configuration key TRAIN.BASELR; did you mean TRAIN.BASE_LR"),
        (["TRAIN.NUM_EPOCHS", "ten"], "TRAIN.NUM_EPOCHS='ten' is not of type int"),
        (["TRAIN.NUM_EPOCHS", True], "is not of type int"),
        (["MODEL.GLOBAL_POOL", 1], "MODEL.GLOBAL_POOL=1 is not of type bool"),
        (["MODEL", 1], "MODEL is a section"),
        (["SEED"], "KEY VALUE or KEY=VALUE, and SEED has no value"),
        (["DATA.IMAGE_SIZE", 100], "not divisible into patches"),
        (["DATA.IMAGE_SIZE", [224]], "must be a side in pixels"),
        (["DATA.IMAGE_SIZE", [224, 192, 3]], r"must be a side in pixels, or \[height, width\]"),
        (["MODEL.MASK_RATIO", 1.0], "MODEL.MASK_RATIO=1.0"),
        (["MODEL.MASK_RATIO", 0.999], "keeps 0 of 196 patches"),
        (["MODEL.ENCODER.NUM_HEADS", 7], "divisible by MODEL.ENCODER.NUM_HEADS=7"),
        (["DATA.BATCH_SIZE", 0], "DATA.BATCH_SIZE=0: must be at least 1"),
        (["DATA.DATASET", "imagenet"], "must be one of imagenet2012, folder"),
        (["DATA.IMAGE_CHANNELS", 1], "needs one number per channel"),
        (["TRAIN.WARMUP_EPOCHS", 801], "exceeds TRAIN.NUM_EPOCHS=800"),
        (["TRAIN.OPTIMIZER.NAME", "Adam"], "must be one of AdamW, AdamWDL, LARS, SGD"),
        (["TRAIN.GRAD_CLIP", 0], "TRAIN.GRAD_CLIP=0.0: must be above 0"),
        (["TRAIN.WEIGHT_DECAY", float("nan")], "TRAIN.WEIGHT_DECAY=nan is not a finite number"),
        (["RUN", ".."], "must be a plain directory name"),
        (["MODEL.MLP_RATIO", 1e-4], "leaves the MLP without hidden units"),
        (["TRAIN.OPTIMIZER.EPS", 0], "EPS=0.0: must be above 0"),
        (["DATA.IMAGENET_STD", [float("nan"), 1, 1]], "DATA.IMAGENET_STD=nan is not a finite number"),
        (["TRAIN.BASE_LR", "1e999"], "TRAIN.BASE_LR=inf is not a finite number"),
        (["TRAIN.BASE_LR", "9" * 400], "TRAIN.BASE_LR=inf is not a finite number"),
        (["DATA.BATCH_SIZE", 10**12], "DATA.BATCH_SIZE=1000000000000: must be at most 1,000,000"),
        (["DATA.IMAGE_SIZE", 10**6], "DATA.IMAGE_SIZE=1000000: must be integers, in pixels, at most"),
        (["DATA.NUM_WORKERS", 100000], "DATA.NUM_WORKERS=100000: must be at most 1,024"),
        (["MODEL.NUM_CLASSES", 10**9], "MODEL.NUM_CLASSES=1000000000: must be at most 10,000,000"),
        (["MODEL.ENCODER.DEPTH", 10**6], "must be at most 1,000"),
        (["SAVE_EVERY_MINUTES", -1], "SAVE_EVERY_MINUTES=-1.0: must be at least 0, or None"),
        (["DATA.IMAGE_SIZE", 1024, "MODEL.PATCH_SIZE", 1], "makes 1,048,576 patches of 1 pixels"),
        (["SEED", 10**30], "SEED is a number of more than 18 digits"),
        (["RUN", "a\x01"], "must be a plain directory name"),
        (["SAVE", ""], "must be a directory"),
        (["DATA.DATA_PATH", "a\0b"], "has a NUL in it"),
        (["AMP", "fp8"], "must be one of auto, False, True, fp16, bf16"),
        (["TRAIN.ACCUM_ITER", None], "None means as many as TRAIN.TOTAL_BATCH_SIZE needs"),
    ],
)
def test_bad_values_are_named(opts, message):
    with pytest.raises(ValueError, match=message):
        get_config(None, opts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAIN:\n  EPOCHS: 3\n", "unknown configuration key TRAIN.EPOCHS"),
        ("- 1\n", "expected KEY: VALUE lines"),
        ("a: [\n", "cannot be read as a YAML file"),
        ("BASE: ['self.yaml']\n", "in a circle"),
        ("BASE: 5\n", "BASE=5 is not a list of YAML files"),
        ("a: !!python/object/apply:os.system ['true']\n", "cannot be read as a YAML file"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "self.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        get_config(path)


def test_python_files_are_never_executed(tmp_path):
    path = tmp_path / "config.py"
    path.write_text("raise SystemExit('executed')")
    with pytest.raises(ValueError, match=r"is a \.yaml file"):
        get_config(path)


def test_empty_file_gives_the_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert get_config(path) == get_config()


# ---- keys of methods


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Add a method with keys of its own to the table."""
    path = tmp_path / "toy.yaml"
    path.write_text(
        "NETWORK: encoder\nKEYS:\n"
        "  TOY.TEMPERATURE: {default: 0.1, rule: above 0 and below 2, about: of the softmax}\n"
        "  TOY.SIZE: {default: None, rule: 'int or None, at least 1', about: images}\n"
        "  TOY.KIND: {default: a, rule: 'one of a, b', about: which one}\n"
    )
    monkeypatch.setitem(config_module.METHODS, "TOY", config_module.read_method_keys(path))


def test_keys_of_a_method_are_there_for_its_type_only(toy, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("MODEL:\n  TYPE: TOY\nTOY:\n  TEMPERATURE: 1\n")
    config = get_config(path, ["TOY.SIZE", "3"])
    assert (config.TOY.TEMPERATURE, config.TOY.SIZE, config.TOY.KIND) == (1.0, 3, "a")
    path.write_text(config.dump())
    assert get_config(path) == config
    assert "TOY" not in get_config()
    with pytest.raises(ValueError, match="unknown configuration key TOY.SIZE: it is for MODEL.TYPE TOY"):
        get_config(None, ["TOY.SIZE", 3])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["TOY.TEMPERATURE", 0], "TOY.TEMPERATURE=0.0: must be above 0"),
        (["TOY.TEMPERATURE", 2], "TOY.TEMPERATURE=2.0: must be below 2"),
        (["TOY.SIZE", 0], "TOY.SIZE=0: must be at least 1, or None"),
        (["TOY.KIND", "c"], "TOY.KIND='c': must be one of a, b"),
        (["TOY.TEMP", 1], "unknown configuration key TOY.TEMP; did you mean TOY.TEMPERATURE"),
        (["TOY.SIZE", 1.5], "TOY.SIZE=1.5 is not of type int or None"),
    ],
)
def test_bad_values_of_a_method_are_named(toy, opts, message):
    with pytest.raises(ValueError, match=message):
        get_config(None, ["MODEL.TYPE", "TOY", *opts])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NETWORK: tree\n", "needs NETWORK, one of autoencoder"),
        ("NETWORK: encoder\nEXTRA: 1\n", "needs NETWORK, one of autoencoder"),
        ("NETWORK: encoder\nKEYS:\n  A.B: 1\n", "A.B needs default and about"),
        ("NETWORK: encoder\nKEYS:\n  A.B: {default: 0, rule: over 3, about: x}\n", "a range is one of above"),
        ("NETWORK: encoder\nKEYS:\n  A.B: {default: 0, rule: above 3, about: x}\n", "default of A.B must be above 3"),
    ],
)
def test_a_damaged_file_of_a_method_is_named(tmp_path, text, message):
    path = tmp_path / "toy.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        config_module.read_method_keys(path)


def test_a_base_of_another_method_may_set_its_own_keys(toy, tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL:\n  TYPE: TOY\nTOY:\n  SIZE: 3\nSEED: 7\n")
    (tmp_path / "run.yaml").write_text("BASE: ['base.yaml']\nMODEL:\n  TYPE: FINETUNE\n")
    config = get_config(tmp_path / "run.yaml")
    assert (config.SEED, "TOY" in config) == (7, False)
    (tmp_path / "run.yaml").write_text("BASE: ['base.yaml']\nMODEL:\n  TYPE: FINETUNE\nTOY:\n  SIZE: 3\n")
    with pytest.raises(ValueError, match="run.yaml: unknown configuration key TOY.SIZE: it is for MODEL.TYPE TOY"):
        get_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("key", "value"), [("SMOOTHING", 0.2), ("MIXUP_ALPHA", 0.0), ("CUTMIX_ALPHA", 0.5), ("RANDOM_ERASE_PROB", 0.5)]
)
@pytest.mark.parametrize("kind", ["digits_wsp", "digits_pretrain", "digits_lit", "digits_linearprobe"])
def test_settings_that_a_method_does_not_use_are_refused(kind, key, value):
    with pytest.raises(UserError, match=f"TRAIN.{key}=.*does not use it"):
        get_config(recipe(kind), [f"TRAIN.{key}", value])
