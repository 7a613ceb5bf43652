"""Command lines of this project: every flag may be written with one dash or two, and -help shows the help."""

import argparse
import math
from pathlib import Path
from typing import NoReturn

from errors import UserError, printable


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and of each flag one of its spellings."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{action.option_strings[0]} {values}".rstrip()


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations, and shows its description as it is written."""

    def __init__(self, **options):
        options.setdefault("formatter_class", _Formatter)
        super().__init__(**options, allow_abbrev=False, add_help=False)
        self.add_argument("-h", "-help", "--help", action="help", help="show this help, and stop")

    def error(self, message: str) -> NoReturn:
        """End the program with one line."""
        self.exit(2, f"error: {printable(message, 400)}; -h explains the flags\n")

    def add(self, name: str, text: str, **options: object) -> None:
        """Add the flag -name, which may be written --name, too."""
        if name == "opts":
            options.setdefault("metavar", "KEY VALUE")
        self.add_argument(f"-{name}", f"--{name}", help=text, **options)


def finite(text: str) -> float:
    """Read a number that is neither infinite nor "not a number", for a parser."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def user_path(text: str | Path, flag: str) -> Path:
    """Return a path, its ~ or ~user replaced.

    Raises:
        UserError: if there is no such user, or no system could have such a path.
    """
    if "\0" in str(text):
        raise UserError(f"{flag}: a path with a NUL in it: {printable(text, 80)}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{flag} {printable(text, 80)}: {error}") from error
