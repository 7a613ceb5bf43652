"""Run a recipe with every combination of some settings, one run each, and compare the results.

    python -m tools.sweep -cfg FILE -grid KEY=VALUE,VALUE [KEY/KEY=VALUE/VALUE,...] [-out DIR] -- FLAGS
    python -m tools.sweep -cfg configs/vit_micro_patch4_32_finetune.yaml -grid TRAIN.BASE_LR=1e-3,2e-3 -- -data_path DIR

Keys joined by / change together. What follows -- goes to the main script that the recipe is for. Each combination is a
run in -out, named after its values; one that has ended is not repeated, one that was stopped resumes. Results are those
of the last evaluation, or of the last training record where a method has none: results.json and results.html in -out.
"""

import runtime

runtime.prepare()

import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import program
from arguments import Parser, user_path
from config import get_config
from errors import UserError, printable
from launch import command_line
from methods import dispatch
from pages import html
from pages.curves import html_charts
from pages.run_page import curve
from storage import atomic, results
from storage.files import NUMBER, is_a, read_json
from storage.run_files import REPORT_FILE
from training.log import read_log

_RESULTS, _PAGE = "results.json", "results.html"
_OWN_FLAGS, _OWN_KEYS = ("cfg", "output", "resume", "eval", "dry_run"), ("RUN", "SAVE", "EVAL", "MODEL.RESUME")
_MOST_POINTS, _MOST_CURVES = 10_000, 8


def read_grid(words: Sequence[str]) -> list[dict[str, str]]:
    """Return the combinations of a grid in order, each as {key: value}.

    Args:
        words: KEY=VALUE,VALUE or KEY/KEY=VALUE/VALUE,VALUE/VALUE; a value that has a comma is in brackets.

    Raises:
        UserError: if one is anything else, or a key is there twice.
    """
    axes, seen = [], set()
    for word in words:
        names, equals, texts = word.partition("=")
        keys, points = names.split("/"), []
        for text in _split_values(texts):
            values = text.split("/") if len(keys) > 1 else [text]
            if not equals or len(values) != len(keys) or not all((*keys, *values)):
                raise UserError(
                    f"-grid {printable(word)}: expected KEY=VALUE,VALUE or KEY/KEY=VALUE/VALUE,VALUE/VALUE, with a "
                    "value for each key"
                )
            points.append(dict(zip(keys, values, strict=True)))
        if seen & set(keys) or len(set(keys)) < len(keys):
            raise UserError(f"-grid {printable(word)}: a key is there twice")
        seen |= set(keys)
        axes.append(points)
    count = math.prod(map(len, axes))
    if count > _MOST_POINTS:
        raise UserError(f"-grid: {count:,} combinations; at most {_MOST_POINTS:,}")
    return [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*axes)]


def _split_values(text: str) -> list[str]:
    """Split at commas outside brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return values


def run_name(point: dict[str, str]) -> str:
    """Return the name of a combination's run: the last words of its keys, in lower case, with the values."""
    parts = [f"{key.rpartition('.')[2].lower()}={value}" for key, value in point.items()]
    name = ",".join(parts).replace("/", "_").replace(" ", "")
    if len(name) > 150 or not name.isprintable():
        raise UserError(f"-grid: the run of {printable(name, 60)} would have a name that is too long, or not printable")
    return name


def run_arguments(point: dict[str, str], cfg: str, flags: Sequence[str], out: Path) -> list[str]:
    """Return the main script's arguments for one combination."""
    settings = [word for pair in point.items() for word in pair]
    return ["-cfg", cfg, *flags, "-output", str(out), "-resume", "auto", "-opts", *settings, "RUN", run_name(point)]


def read_result(run: Path) -> dict[str, float]:
    """Return the numbers of a run's last evaluation; without one, of its last training record."""
    records = read_log(run)
    chosen = [record for record in records if record["event"] == "eval"] or records
    hidden = {"event", "step", "lr", "grad_norm", "images_per_sec", "data_wait"}
    return {key: value for key, value in chosen[-1].items() if key not in hidden} if chosen else {}


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Run what has not ended yet, and return the settings and results of all combinations."""
    argv = list(sys.argv[1:] if argv is None else argv)
    place = argv.index("--") if "--" in argv else len(argv)
    own, flags = argv[:place], argv[place + 1 :]
    parser = Parser(prog="python -m tools.sweep", description=__doc__)
    parser.add("cfg", "YAML file of the recipe", required=True, metavar="FILE")
    parser.add("grid", "settings: KEY=VALUE,VALUE ...", required=True, nargs="+", metavar="KEY=VALUES")
    parser.add("out", "directory for the runs and the results (default: output/sweep)", default="output/sweep")
    args = parser.parse_args(own)
    points, out = read_grid(args.grid), user_path(args.out, "-out")
    script = _check(args.cfg, points, flags, out)
    results.check_target(out)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / _RESULTS).is_file():
        results.claim(out, (_RESULTS, _PAGE))
    about = {"recipe": get_config(args.cfg).dump(), "flags": flags}
    done = _read_done(out, about)
    rows, failed = [], []
    for number, point in enumerate(points, start=1):
        name = run_name(point)
        if name not in done or not (out / name).is_dir():
            print(f"{number} of {len(points)}: {name}", flush=True)
            code = command_line.run_script(script, run_arguments(point, args.cfg, flags, out))
            if code == program.EXIT_STOPPED or code > 128:
                raise SystemExit(code)
            if code:
                failed.append(f"{name} (exit code {code})")
                continue
            done[name] = read_result(out / name)
            _write_done(out, about, done)
        rows.append({**point, **done[name], "run": str(out / name)})
    rows = _sorted(rows)
    _report(rows, list(points[0]), out)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(points)} runs failed: {', '.join(failed)}; start the sweep again to retry"
        )
    return rows


def _check(cfg: str, points: list[dict[str, str]], flags: list[str], out: Path) -> str:
    """Raise UserError for a mistake in any combination before the first run; returns which main script runs them."""
    given = [flag.lstrip("-").partition("=")[0] for flag in flags if flag.startswith("-")]
    refused = [flag for flag in given if flag in _OWN_FLAGS] + [key for key in _OWN_KEYS if key in (*flags, *points[0])]
    if refused:
        raise UserError(f"{refused[0]}: is set by the sweep itself; see -cfg and -out before the --")
    names = [run_name(point) for point in points]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"-grid: two combinations would be the run {twice}; give them other values")
    script = dispatch.get_method(get_config(cfg)).script
    for point in points:
        dispatch.check_script(script, command_line.read_config(script, run_arguments(point, cfg, flags, out)))
    return script


def _read_done(out: Path, about: dict) -> dict[str, dict[str, float]]:
    """Return the results of runs that ended, by name; raise UserError if they are those of another sweep.

    Args:
        about: recipe and flags, which are noted before the first run.
    """
    file = out / _RESULTS
    if not file.is_file():
        _write_done(out, about, {})
        return {}
    values = read_json(file, {"recipe": str, "flags": list, "runs": dict}, advice="choose another -out")
    for key, value in about.items():
        if values[key] != value:
            raise UserError(f"{out}: holds a sweep of another recipe, or with other flags ({key}); choose another -out")
    for name, result in values["runs"].items():
        if not isinstance(result, dict) or not all(is_a(value, (*NUMBER, str)) for value in result.values()):
            raise UserError(f"{file}: damaged, its result of {printable(name, 60)} is not as it was written; delete it")
    return values["runs"]


def _write_done(out: Path, about: dict, done: dict) -> None:
    atomic.write_text(out / _RESULTS, json.dumps({**about, "runs": done}, indent=1))


def _sorted(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Put the best run first: by top-1 accuracy or mean average precision, or by the lowest loss."""

    def number(row: dict[str, object], name: str) -> float:
        return row[name] if is_a(row.get(name), NUMBER) else 0.0

    return sorted(rows, key=lambda row: (-number(row, "acc1"), -number(row, "map"), number(row, "loss")))


def _report(rows: list[dict[str, object]], keys: list[str], out: Path) -> None:
    if not rows:
        return
    metrics = [name for name in ("acc1", "acc5", "map", "loss", "epoch") if name in rows[0]]
    header = [*keys, *metrics]
    table = [[row.get(name, "-") for name in header] for row in rows]
    widths = [max(len(_text(cell)) for cell in column) for column in zip(header, *table, strict=True)]
    for line in (header, *table):
        print("  ".join(_text(cell).ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    score = next((name for name in ("acc1", "map", "loss") if name in metrics), None)
    note = f"The runs are in {out.resolve()}, named after their settings. "
    if score in ("acc1", "map"):
        ties = sum(row.get(score) == rows[0][score] for row in rows)
        note += "The first one is the best on val, on which it was also chosen." if ties == 1 else ""
        note += f"The first {ties} are equally good on val, on which they were also chosen." if ties > 1 else ""
    names = [Path(str(row["run"])).name for row in rows]
    links = [[html.Link("run", f"{name}/{REPORT_FILE}"), *line] for name, line in zip(names, table, strict=True)]
    sections = [("Results", html.html_table(["", *header], links) + html.html_paragraph(note))]
    if score is not None:
        curves = {name: _curve(out / name, score) for name in names[:_MOST_CURVES]}
        sections.append((f"The best {len(curves)} runs over their epochs", html_charts([(score, curves)])))
    html.write_page(out / _PAGE, f"Sweep of {len(rows)} runs", sections)
    print(f"wrote {out / _RESULTS} and {out / _PAGE}")


def _curve(run_dir: Path, score: str) -> list[tuple[float, float]]:
    records = read_log(run_dir)
    return curve(records, "eval", score) or curve(records, "train", score)


def _text(cell: object) -> str:
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


if __name__ == "__main__":
    command_line.run(main)
