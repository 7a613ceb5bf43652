"""Say what pretraining costs, before it is begun: with each decoder, share of predicted patches, and resolution.

    python -m tools.plan -cfg FILE -gpu a100 [-gpus 1] [-images 1281167] [-hours 24] [-share 0.4] [-out plan.html]
    python -m tools.plan -cfg FILE -doctor doctor.json [...]

For each way to pretrain the recipe's encoder: GMAC of an image's forward pass, GFLOP to train on it, GiB of memory at
the recipe's batch, photos that the loader must decode per second (a quarter with TRAIN.AUG_REPEATS 4), and hours. This
is arithmetic: hours are those at an assumed share of the card's peak; small models reach less. What `python -m
tools.doctor` has measured on a card takes its place with -doctor. -hours names what fits.
"""

import runtime

runtime.prepare()

import re
from pathlib import Path

from arguments import Parser, finite
from errors import UserError, printable
from launch import command_line
from measures import pretrain_costs
from measures.pretrain_costs import Costs, Variant
from pages import html, plots
from storage import results
from storage.files import NUMBER, is_a, read_json, reading
from training import flops

_IMAGENET = 1_281_167
_MOST_TFLOPS = 1e6  # a thousand times the fastest card
_REPEATS = 4
_HEADER = ["", "GMAC", "of them decoder", "GFLOP to train", "GiB", "photos/s", f"with {_REPEATS} repeats", "hours"]


def peak_of(name: str) -> float:
    """Return the peak FLOPs per second of a card by a name such as a100 or 4090; raise UserError for others."""
    tried = (name, f"RTX {name}", f"{name} ")
    found = next((peak for peak in map(flops.peak_flops, tried) if peak is not None), None)
    if found is None:
        known = ", ".join(flops.known_gpus())
        raise UserError(f"-gpu {printable(name)}: not known; -peak_tflops NUMBER takes another card's. Known: {known}")
    return found


def measured_by_doctor(file: Path) -> tuple[float, str]:
    """Return the largest FLOPs per second that the doctor measured in pretraining, and of which check.

    Raises:
        UserError: if the file has none.
    """
    content = read_json(file, {"sections": dict})
    with reading(file, "what tools.doctor writes"):
        checks = [check for own in content["sections"].values() for check in own]
        named = [(str(check["name"]), (check.get("values") or {}).get("tflops")) for check in checks]
        rates = [(r, name) for name, r in named if "pretrain" in name and is_a(r, NUMBER) and 0 < r <= _MOST_TFLOPS]
    if not rates:
        raise UserError(f"-doctor {file}: has no measured speed of pretraining; run python -m tools.doctor on the card")
    rate, name = max(rates)
    return 1e12 * rate, printable(name.removesuffix(": speed"))


def to_row(variant: Variant, cost: Costs, num_images: int, rate: float, hours: float | None) -> list[str]:
    """Return the figures of a variant; with hours, the epochs that fit into them, too."""
    photos, needed = cost.images_per_sec(rate), cost.hours(num_images, rate)
    row = [
        variant.name,
        f"{cost.encoder_gmac + cost.decoder_gmac:.3f}",
        f"{cost.decoder_gmac:.3f}",
        f"{cost.train_gflop:.2f}",
        f"{cost.memory_gib:.1f}",
        f"{photos:,.0f}",
        f"{photos / _REPEATS:,.0f}",
        f"{needed:.1f}" if needed >= 1 else f"{needed:.3f}",
    ]
    return row if hours is None else [*row, f"{int(cost.epochs * hours / needed):,}"]


def fitting(planned: list[tuple[Variant, Costs]], num_images: int, rate: float, hours: float) -> list[str]:
    """Return lines that say what fits into some hours, and how to choose the first of it; or what comes nearest."""
    needed = [(cost.hours(num_images, rate), variant, cost) for variant, cost in planned]
    fits = [(own, variant) for own, variant, _ in needed if own <= hours]
    if fits:
        lines = [f"{variant.name}: {own:.1f} hours" for own, variant in fits]
        return [*lines, f"the first of these: {_shown(fits[0][1])}"]
    own, variant, cost = min(needed, key=lambda row: row[0])
    return [f"nothing; {variant.name}, the cheapest, does {int(cost.epochs * hours / own)} of its {cost.epochs} epochs"]


def _shown(variant: Variant) -> str:
    """Return a variant's options for a command line."""
    if not variant.options:
        return "the recipe as it is"
    return "-opts " + " ".join(f"'{word}'" if re.search(r"[\[\]]", word) else word for word in variant.options)


def write_page(out: Path, title: str, said: str, planned: list[tuple[Variant, Costs]], table: list[list[str]]) -> None:
    """Write a page with the figures, as a table and as bars of GFLOP, encoder beside decoder."""
    names = [variant.name for variant, _ in planned]
    parts = {
        "encoder": [6 * cost.encoded * cost.encoder_gmac for _, cost in planned],
        "decoder": [6 * cost.encoded * cost.decoder_gmac for _, cost in planned],
    }
    picture = plots.draw_bars(names, parts, "GFLOP to train on an image")
    options = html.html_table(["", "settings"], [[variant.name, _shown(variant)] for variant, _ in planned])
    sections = [
        ("Assumptions", html.html_text(said)),
        ("Costs", html.html_table(table[0], table[1:])),
        ("Where the products are", html.html_figure(picture, "What a decoder costs beside its encoder.")),
        ("How", options),
    ]
    html.write_page(out, title, sections)


def main(argv: list[str] | None = None) -> list[tuple[Variant, Costs]]:
    """Print the table, and return variants with their costs."""
    parser = Parser(prog="python -m tools.plan", description=__doc__)
    parser.add("cfg", "recipe of pretraining", required=True, metavar="FILE")
    parser.add("opts", "settings, as of the main scripts", nargs="*", default=[])
    parser.add("images", f"of the data set (default: ImageNet-1k's {_IMAGENET:,})", type=int, default=_IMAGENET)
    parser.add("gpu", "card: a100, h100, 4090, ...", metavar="NAME")
    parser.add("peak_tflops", "peak of another card in low precision", type=finite, metavar="NUMBER")
    parser.add("doctor", "doctor.json of the card, whose measured speed is taken instead", metavar="FILE")
    parser.add("gpus", "number of cards (default: 1)", type=int, default=1)
    parser.add("share", "of the peak that is reached, assumed (default: 0.4)", type=finite)
    parser.add("hours", "name what fits into them", type=finite)
    parser.add("out", "page to write", metavar="FILE.html")
    args = parser.parse_args(argv)
    rate, source = _speed(args)
    out = None if args.out is None else results.new_file(args.out, ".html")
    variants = pretrain_costs.family(args.cfg, args.opts)
    planned = [(variant, pretrain_costs.costs(variant.config)) for variant in variants]
    rows = [to_row(variant, cost, args.images, rate, args.hours) for variant, cost in planned]
    header = _HEADER if args.hours is None else [*_HEADER, f"epochs in {args.hours:g} h"]
    said = f"{args.images:,} images, {planned[0][1].epochs} epochs; {source}"
    print(said)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]).rstrip())
    if args.hours is not None:
        lines = fitting(planned, args.images, rate, args.hours)
        print(f"\nin {args.hours:g} hours fit:", *lines, sep="\n")
        said = "\n".join([said, "", f"In {args.hours:g} hours fit:", *lines])
    if out is not None:
        write_page(out, f"Plan of {Path(args.cfg).stem}", said, planned, [header, *rows])
        print(f"wrote {out}")
    return planned


def _speed(args) -> tuple[float, str]:
    """Return the FLOPs per second of all cards, and where they come from in words."""
    for flag, least, most in (("images", 1, 10**12), ("gpus", 1, 10**6), ("hours", 1e-3, 1e6), ("share", 1e-3, 1)):
        value = getattr(args, flag)
        if value is not None and not least <= value <= most:
            raise UserError(f"-{flag} {printable(value, 40)}: must be from {least:,g} to {most:,g}")
    if args.peak_tflops is not None and not 1e-3 <= args.peak_tflops <= _MOST_TFLOPS:
        raise UserError(f"-peak_tflops {args.peak_tflops:g}: must be from 0.001 to {_MOST_TFLOPS:,g}")
    given = [flag for flag in ("gpu", "peak_tflops", "doctor") if getattr(args, flag) is not None]
    if len(given) != 1:
        raise UserError("name the card by one of -gpu, -peak_tflops and -doctor" + f"; not by {given}" * bool(given))
    cards = "one card" if args.gpus == 1 else f"{args.gpus} cards"
    if args.doctor is not None:
        if args.share is not None:
            raise UserError("-share: is an assumption, which -doctor replaces by what was measured; leave it out")
        rate, name = measured_by_doctor(Path(args.doctor))
        return args.gpus * rate, f"{cards} at {rate / 1e12:.3g} TFLOP/s each, as the doctor measured ({name})"
    share = 0.4 if args.share is None else args.share
    peak = peak_of(args.gpu) if args.gpu is not None else 1e12 * args.peak_tflops
    return args.gpus * share * peak, (
        f"{cards} at {share:.0%} of {peak / 1e12:g} TFLOP/s, which is assumed, not measured: python -m tools.doctor "
        "measures, and -doctor doctor.json takes it"
    )


if __name__ == "__main__":
    command_line.run(main)
