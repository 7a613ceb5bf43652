"""Command lines of this project: every flag may be written with one dash or two, and -help helps."""

import argparse


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations, and shows its description as it is written."""

    def __init__(self, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options, allow_abbrev=False, add_help=False)
        self.add_argument("-h", "-help", "--help", action="help", help="show this help, and stop")

    def add(self, name: str, text: str, **options: object) -> None:
        """Add the flag -name, which may be written --name, too."""
        self.add_argument(f"-{name}", f"--{name}", help=text, **options)
