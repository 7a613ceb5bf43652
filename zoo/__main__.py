"""`python -m zoo`: list, describe and fetch published weights."""

import runtime

runtime.end_quietly()

import sys
from collections.abc import Sequence

import program
from arguments import Parser
from errors import UserError
from zoo import download
from zoo.entries import find, table
from zoo.models import fetch


def _list(pattern: str) -> None:
    rows = [
        (
            name,
            f"{entry.num_parameters / 1e6:,.1f}",
            entry.content,
            entry.source,
            entry.licence,
            "not usable" if entry.unsupported else entry.verified,
            entry.published,
        )
        for name, entry in table().items()
        if pattern in name
    ]
    if not rows:
        raise UserError(f"no name contains {pattern!r}")
    rows.insert(0, ("NAME", "MILLION", "CONTENT", "SOURCE", "LICENCE", "VERIFIED", "PUBLISHED"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, number, *rest in rows:
        cells = [name.ljust(widths[0]), number.rjust(widths[1])]
        cells += [cell.ljust(width) for cell, width in zip(rest, widths[2:], strict=True)]
        print("  ".join(cells).rstrip())


def _info(name: str) -> None:
    entry = find(name)
    folder = download.folder_of(entry.url)
    lines = {
        "name": entry.name,
        "content": entry.architecture.content,
        "architecture": entry.architecture,
        "size": f"{entry.num_parameters:,} numbers, {entry.num_parameters * 4 / 2**20:,.0f} MiB in float32",
        "source": f"{entry.source}, {entry.page}, {entry.paper}",
        "licence": entry.licence,
        "published": entry.published,
        "verified": entry.verified,
        "note": entry.note,
        "unsupported": entry.unsupported,
        "url": entry.url,
        "md5": f"{entry.md5}... as published"
        if entry.md5
        else "none published; the SHA-256 sum is recorded on first use",
        "cache": f"{folder} ({'there' if download.is_cached(entry.url) else 'not there yet'})",
    }
    for title, value in lines.items():
        if value:
            print(f"{title:13} {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """List, describe or fetch weights; return the exit code: 0, or 1 after an error."""
    parser = Parser(prog="python -m zoo", description="Published weights by name.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="what there is")
    command.add_argument("pattern", nargs="?", default="", help="part of the name")
    command = commands.add_parser("info", help="all about one of them")
    command.add_argument("name", metavar="NAME")
    command = commands.add_parser("fetch", help="download and port it; prints where it is")
    command.add_argument("name", metavar="NAME")
    command.add("from", "take the original file from there", dest="source", metavar="FILE_OR_URL")
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            _list(args.pattern)
        elif args.command == "info":
            _info(args.name)
        else:
            print(fetch(args.name, args.source, say=lambda line: print(line, file=sys.stderr)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    program.run(lambda: sys.exit(main()), error_code=1)
