"""Pretrain, probe, finetune and evaluate on handwritten digits, and check the accuracies; see run_quickstart.sh."""

import runtime

runtime.prepare()

import os
import shutil
import time
from pathlib import Path

import program
from errors import UserError
from launch import command_line
from methods import load_models
from pages import drawing, html, run_page
from pages.curves import html_charts
from pages.reconstruction import reconstruct

ROOT = runtime.ROOT
OUTPUT = ROOT / "output" / "quickstart"
MIN_FINETUNED = 97.0  # % top-1 of 360 digits

# name of the run, mode, flags
_STAGES = (
    ("untrained", "pretrain", ["-opts", "TRAIN.NUM_EPOCHS", "0", "TRAIN.WARMUP_EPOCHS", "0"]),
    ("pretrain", "pretrain", []),
    ("probe-untrained", "linearprobe", ["-pretrained", "untrained"]),
    ("probe", "linearprobe", ["-pretrained", "pretrain"]),
    ("finetune", "finetune", ["-pretrained", "pretrain"]),
    ("evaluate", "finetune", ["-eval", "-pretrained", "finetune"]),
)


def run_stage(name: str, mode: str, flags: list[str]) -> float:
    """Run a main script as a user would, and return its seconds."""
    flags = [str(OUTPUT / flag) if flags[index - 1] == "-pretrained" else flag for index, flag in enumerate(flags)]
    settings = ["-opts", "RUN", name, "REPORT", "False"]  # there is one page for all
    arguments = ["-cfg", f"configs/digits_{mode}.yaml", "-output", str(OUTPUT), *flags, *settings]
    print(f"\n==> python main_multi_gpu_{mode}.py {' '.join(arguments)}", flush=True)
    started = time.monotonic()
    code = command_line.run_script(mode, arguments)
    if code == program.EXIT_STOPPED or code > 128:
        raise SystemExit(code)
    if code:
        raise UserError(f"main_multi_gpu_{mode}.py ended with code {code}; its message is above")
    return time.monotonic() - started


def last_accuracy(name: str) -> float:
    """Return the last top-1 accuracy in a run's log, in %."""
    return [record["acc1"] for record in run_page.read_log(OUTPUT / name) if record["event"] == "eval"][-1]


def write_report(rows: list[list[object]], path: Path) -> None:
    """Write the page: table, curves, pictures."""
    logs = {name: run_page.read_log(OUTPUT / name) for name in ("pretrain", "finetune", "probe", "probe-untrained")}
    charts = html_charts(
        [
            ("Pretraining: loss on hidden patches", {"pretrain": run_page.curve(logs["pretrain"], "train", "loss")}),
            ("Finetuning: loss", {"finetune": run_page.curve(logs["finetune"], "train", "loss")}),
            (
                "Validation: top-1 accuracy (%)",
                {
                    "finetune": run_page.curve(logs["finetune"], "eval", "acc1"),
                    "probe": run_page.curve(logs["probe"], "eval", "acc1"),
                    "probe, untrained encoder": run_page.curve(logs["probe-untrained"], "eval", "acc1"),
                },
            ),
        ]
    )
    model, config = load_models.load_autoencoder(OUTPUT / "pretrain")
    pictures = reconstruct(model, config, drawing.draw_images(config, 8)).to_html()
    html.write_page(
        path,
        "MAE quickstart: handwritten digits",
        [
            ("Results", html.html_table(["stage", "top-1 accuracy (%)", "target", "seconds"], rows)),
            ("Curves", charts),
            ("Reconstructions", pictures),
        ],
    )


def main() -> None:
    """Run the stages, print the table, write the page; raise if a target is missed."""
    os.chdir(ROOT)
    for name, _, _ in _STAGES:
        shutil.rmtree(OUTPUT / name, ignore_errors=True)
    secs = {name: run_stage(name, mode, flags) for name, mode, flags in _STAGES}
    untrained, probe, evaluated = (last_accuracy(name) for name in ("probe-untrained", "probe", "evaluate"))
    rows = [
        ["linear probe, untrained encoder", untrained, "", round(secs["probe-untrained"])],
        ["linear probe, pretrained encoder", probe, "above the untrained", round(secs["pretrain"] + secs["probe"])],
        [
            "finetuned, evaluated from its file",
            evaluated,
            f"at least {MIN_FINETUNED}",
            round(secs["finetune"] + secs["evaluate"]),
        ],
    ]
    page = OUTPUT / "report.html"
    write_report(rows, page)
    print(f"\n{'stage':<36}{'top-1 %':>9}  {'target':<22}{'seconds':>8}")
    for stage, accuracy, target, seconds in rows:
        print(f"{stage:<36}{accuracy:>9.2f}  {target:<22}{seconds:>8}")
    print(f"{'all':<36}{'':>9}  {'':<22}{sum(secs.values()):>8.0f}\n\nreport: {page}")
    if evaluated < MIN_FINETUNED or probe <= untrained:
        raise UserError("a target is missed, see the table")


if __name__ == "__main__":
    command_line.run(main)
