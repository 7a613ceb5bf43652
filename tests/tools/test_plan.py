"""The planner: published products and hours of them, what fits, and a page."""

import json

import pytest

from config import get_config
from errors import UserError
from measures import pretrain_costs
from storage.architecture import of_config
from tests.helpers.recipes import recipe
from tools import plan
from training import flops

pytestmark = pytest.mark.quick
BASE = str(recipe("vit_base_patch16_224_pretrain"))


@pytest.fixture(scope="module")
def planned():
    return {variant.name: cost for variant, cost in plan.main(["-cfg", BASE, "-gpu", "a100"])}


# GMAC of ViT-B at 224 pixels, whole and in the decoder, and hours of 800 epochs of ImageNet at 40 % of an A100's and an
# H100's peak: arithmetic of others.
@pytest.mark.parametrize(
    ("name", "gmac", "decoder", "hours"),
    [
        ("as configured", 9.78, 5.37, (134, 42)),
        ("one block", 5.17, 0.76, (71, 22)),
        ("cross, 12 blocks, predicts 75%", 9.66, 5.25, None),
        ("cross, 12 blocks, predicts 25%", 6.48, 2.07, (89, 28)),
        ("cross, 12 blocks, predicts 15%", 5.86, 1.45, None),
        ("cross, 4 blocks, predicts 25%", 5.11, 0.70, None),
        ("cross, 1 block, predicts 25%", 4.60, 0.19, None),
    ],
)
def test_products_and_hours_are_the_published_ones(planned, name, gmac, decoder, hours):
    cost = planned[name]
    assert (cost.encoder_gmac + cost.decoder_gmac, cost.decoder_gmac) == pytest.approx((gmac, decoder), abs=0.0051)
    assert cost.train_gflop == pytest.approx(6 * (cost.encoder_gmac + cost.decoder_gmac))
    for card, expected in zip(("a100", "h100"), hours or (), strict=False):
        assert round(cost.hours(1_281_167, 0.4 * plan.peak_of(card))) == expected


def test_growing_images_are_a_mean_over_epochs(planned):
    """160, 192 and 224 pixels for a quarter, a quarter and a half of the epochs: 0.81 of the products (DailyMAE)."""
    for name in ("own decoder", "cross, 12 blocks, predicts 25%"):
        whole = planned["as configured" if name == "own decoder" else name]
        grown = planned[f"{name}, 160 to 224 pixels"]
        assert round(grown.train_gflop / whole.train_gflop, 2) == 0.81
        assert grown.memory_gib == whole.memory_gib


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("v100", 125), ("T4", 65), ("a100", 312), ("a800", 312), ("a10", 125), ("a30", 165), ("a40", 149.7),
        ("h100", 989), ("H100 PCIe", 756), ("h800", 989), ("h200", 989), ("b200", 2250), ("l40s", 362), ("l4", 60.5),
        ("3090", 71), ("rtx 4090", 165.2), ("4090", 165.2), ("5090", 209.5),
    ],
)  # fmt: skip
def test_cards(name, tflops):
    assert plan.peak_of(name) == 1e12 * tflops


def test_every_variant_is_a_configuration_of_the_same_encoder(planned):
    own = of_config(get_config(BASE), "autoencoder")
    for variant in pretrain_costs.family(BASE):
        architecture = of_config(variant.config, "autoencoder")
        assert architecture.encoder == own.encoder
        cost, ratios = planned[variant.name], flops.ratios(variant.config)
        if variant.config.TRAIN.RESOLUTION is None:
            assert cost.train_gflop == pytest.approx(flops.train_flops(architecture, *ratios) / 1e9)
        if ratios[1] is not None:  # CrossMAE's rule
            assert pytest.approx(1.5e-4 * ratios[1] / 0.75, rel=1e-3) == variant.config.TRAIN.BASE_LR


def test_views_and_masks_are_encoded(planned):
    configured = plan.main(["-cfg", BASE, "-gpu", "a100", "-opts", "TRAIN.VIEWS", "2", "TRAIN.MASKS", "2"])[0][1]
    assert configured.train_gflop == pytest.approx(4 * planned["as configured"].train_gflop)


def test_what_fits(capsys):
    plan.main(["-cfg", BASE, "-gpu", "h100", "-hours", "24"])
    said = capsys.readouterr().out
    assert "one card at 40% of 989 TFLOP/s, which is assumed, not measured" in said
    fits = said.partition("in 24 hours fit:\n")[2].splitlines()
    assert fits[0] == "one block: 22.3 hours"
    assert fits[-1] == "the first of these: -opts MODEL.DECODER.DEPTH 1"
    assert not any(line.startswith("as configured") for line in fits)
    row = next(line for line in said.splitlines() if line.startswith("as configured"))
    assert row.split()[-2:] == ["42.2", "454"]  # hours, and epochs in 24 of them
    plan.main(["-cfg", BASE, "-gpu", "t4", "-hours", "24"])
    assert "nothing; cross, 1 block, predicts 15%, 160 to 224 pixels, the cheapest, does 79" in capsys.readouterr().out


def test_the_doctors_figure_takes_the_place_of_the_assumption(tmp_path, capsys):
    values = {"images_per_sec": 900.0, "tflops": 52.8}
    checks = [
        {"name": "vit_base_patch16_224_pretrain, batch 256, O2: speed", "values": values},
        {"name": "vit_base_patch16_224_pretrain, batch 64, O1: speed", "values": {"tflops": 30.0}},
        {"name": "vit_base_patch16_224_finetune, batch 64, O1: speed", "values": {"tflops": 99.0}},
        {"name": "device", "values": None},
    ]
    file = tmp_path / "doctor.json"
    file.write_text(json.dumps({"sections": {"Speed": checks}}))
    ((_, cost), *_) = plan.main(["-cfg", BASE, "-doctor", str(file), "-gpus", "2"])
    said = capsys.readouterr().out
    assert "2 cards at 52.8 TFLOP/s each, as the doctor measured (vit_base_patch16_224_pretrain, batch 256, O2)" in said
    assert cost.images_per_sec(2 * 52.8e12) == pytest.approx(1800, rel=1e-3)
    for wrong in (True, "52", [1], 1e300, -3, None):
        file.write_text(json.dumps({"sections": {"Speed": [{"name": "pretrain", "values": {"tflops": wrong}}]}}))
        with pytest.raises(UserError, match="has no measured speed of pretraining"):
            plan.main(["-cfg", BASE, "-doctor", str(file)])
    loud = [{"name": "pretrain\u001b[31m\n", "values": {"tflops": 1.0}}]
    file.write_text(json.dumps({"sections": {"Speed": loud}}))
    plan.main(["-cfg", BASE, "-doctor", str(file)])
    assert "\x1b" not in capsys.readouterr().out
    file.write_text(json.dumps({"sections": {"Speed": checks[2:]}}))
    with pytest.raises(UserError, match="has no measured speed of pretraining"):
        plan.main(["-cfg", BASE, "-doctor", str(file)])
    file.write_text(json.dumps({"sections": {"Speed": ["?"]}}))
    with pytest.raises(UserError, match="doctor.json"):
        plan.main(["-cfg", BASE, "-doctor", str(file)])


def test_a_static_graph_has_no_growing_rows():
    found = plan.main(["-cfg", BASE, "-gpu", "a100", "-opts", "TRAIN.TO_STATIC", "True"])
    assert len(found) == 11
    assert all(variant.config.TRAIN.RESOLUTION is None for variant, _ in found)


def test_the_page(tmp_path):
    out = tmp_path / "plan.html"
    plan.main(["-cfg", str(recipe("vit_micro_patch4_32_pretrain")), "-gpu", "4090", "-hours", "1", "-out", str(out)])
    page = out.read_text(encoding="utf-8")
    assert "Plan of vit_micro_patch4_32_pretrain" in page
    assert "cross, 4 blocks, predicts 25%, 24 to 32 pixels" in page
    assert "&#x27;[[0,24],[8,28],[15,32]]&#x27;" in page
    assert page.count("<img") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-cfg", BASE], "name the card by one of -gpu, -peak_tflops and -doctor"),
        (["-cfg", BASE, "-gpu", "a100", "-peak_tflops", "3"], "not by"),
        (["-cfg", BASE, "-gpu", "mi300"], "-gpu mi300: not known; -peak_tflops NUMBER takes another card's"),
        (["-cfg", BASE, "-gpu", ".*"], "not known"),
        (["-cfg", BASE, "-peak_tflops", "-3"], "must be from 0.001"),
        (["-cfg", BASE, "-peak_tflops", "1e300"], "must be from 0.001"),
        (["-cfg", BASE, "-gpu", "a100", "-share", "40"], "-share 40.*: must be from 0.001 to 1"),
        (["-cfg", BASE, "-gpu", "a100", "-share", "1e-300"], "must be from 0.001 to 1"),
        (["-cfg", BASE, "-gpu", "a100", "-images", "0"], "-images 0: must be from 1 to 1e"),
        (["-cfg", BASE, "-gpu", "a100", "-images", "9" * 400], "must be from 1 to 1e"),
        (["-cfg", BASE, "-gpu", "a100", "-gpus", "9" * 400], "must be from 1 to 1e"),
        (["-cfg", BASE, "-gpu", "a100", "-hours", "0"], "-hours 0.*: must be from 0.001"),
        (["-cfg", BASE, "-gpu", "a100", "-hours", "1e308"], "must be from 0.001"),
        (
            ["-cfg", BASE, "-gpu", "a100", "-opts", "TRAIN.NUM_EPOCHS", "0", "TRAIN.WARMUP_EPOCHS", "0"],
            "nothing to plan",
        ),
        (["-cfg", BASE, "-gpu", "a100", "-opts", "DISTILL.TEACHER", "x"], "what a teacher costs is not planned"),
        (["-cfg", BASE, "-gpu", "a100", "-opts", "TRAIN.MASKS", "5"], "TRAIN.MASKS=5: each shows 49 of 196"),
        (["-cfg", BASE, "-gpu", "a100", "-out", "plan.txt"], "plan.txt"),
        (["-cfg", BASE, "-doctor", "doctor.json", "-share", "0.5"], "-share: is an assumption"),
        (["-cfg", BASE, "-doctor", "none.json"], "none.json"),
        (["-cfg", str(recipe("vit_base_patch16_224_finetune")), "-gpu", "a100"], "of MODEL.TYPE FINETUNE"),
    ],
)
def test_what_cannot_be_planned_is_named(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        plan.main(argv)
    assert not list(tmp_path.iterdir())
