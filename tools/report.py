"""Write a page about a run, or one that compares several: curves, figures, configuration, pictures.

    python -m tools.report RUN                              # RUN/report.html
    python -m tools.report RUN RUN [RUN ...] -out FILE.html

Every run writes its own while it trains and at its end, unless REPORT is False. The pictures are val images: their
reconstructions by an autoencoder, the predictions of a classifier, or where an encoder attends to.
"""

import runtime

runtime.prepare()

from pathlib import Path

from arguments import Parser
from errors import UserError
from launch import command_line
from pages.run_page import PICTURES, write_comparison, write_pictures, write_report
from storage import results
from training import device


def main(argv: list[str] | None = None) -> Path:
    """Write the page, and return its path."""
    parser = Parser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("runs", nargs="+", help="directories of runs")
    parser.add("out", "HTML file; default for one run: its report.html", metavar="FILE")
    parser.add("pictures", "directory for the reconstructions of one run as a PNG file", metavar="DIR")
    args = parser.parse_args(argv)
    run_dirs = [Path(run) for run in args.runs]
    if args.out is None and len(run_dirs) > 1:
        raise UserError("-out is missing: where shall the comparison go?")
    own = run_dirs[0] / "report.html"
    out = Path(own if args.out is None else args.out)
    out = results.new_file(out, ".html", check=len(run_dirs) > 1 or out.resolve() != own.resolve())
    for directory in run_dirs:
        if not (directory / "log.jsonl").is_file() or not (directory / "config.yaml").is_file():
            raise UserError(f"{directory}: not the directory of a run, which has config.yaml and log.jsonl")
    device.set_device("cpu")
    if len(run_dirs) == 1:
        write_report(run_dirs[0], out)
        if args.pictures is not None:
            folder = results.new_directory(args.pictures, run_dirs, flag="-pictures", writes=PICTURES)
            results.claim(folder, PICTURES)
            write_pictures(run_dirs[0], folder)
    else:
        write_comparison(run_dirs, out)
    print(f"wrote {out}")
    return out


if __name__ == "__main__":
    command_line.run(main)
