"""`python -m zoo`: list, describe and fetch published weights."""

import runtime

runtime.end_quietly()

import sys
from collections.abc import Sequence

import program
from arguments import Parser
from errors import UserError
from zoo import download
from zoo.entries import companions, find, table
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
    others = [companion for name, companion in companions().items() if pattern in name]
    if not rows and not others:
        raise UserError(f"no name contains {pattern!r}")
    if rows:
        rows.insert(0, ("NAME", "MILLION", "CONTENT", "SOURCE", "LICENCE", "VERIFIED", "PUBLISHED"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    for name, number, *rest in rows:
        cells = [name.ljust(widths[0]), number.rjust(widths[1])]
        cells += [cell.ljust(width) for cell, width in zip(rest, widths[2:], strict=True)]
        print("  ".join(cells).rstrip())
    for companion in others:
        print(f"{companion.name}: {companion.about} ({companion.licence})")


def _info(name: str) -> None:
    if name in companions():
        found = companions()[name]
        lines = {"name": name, "about": found.about, "licence": found.licence, "url": found.url}
        return _print_lines(lines | {"cache": _place(found.url)})
    entry = find(name)
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
        "cache": _place(entry.url),
    }
    return _print_lines(lines)


def _place(url: str) -> str:
    try:
        download.cache_folder(url)
    except UserError as error:  # a user without a home directory
        return f"none ({error})"
    return f"{download.cache_folder(url)} ({'there' if download.is_cached(url) else 'not there yet'})"


def _print_lines(lines: dict[str, object]) -> None:
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
