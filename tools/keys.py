"""Print the keys of configurations: default, permitted values, meaning, and whether PaddleViT has them.

python -m tools.keys               every key
python -m tools.keys erase         those with this word in their name or meaning
"""

import difflib
from collections.abc import Iterator, Sequence

from arguments import Parser
from config import METHODS, SHARED_KEYS, Key
from errors import UserError, printable
from launch import command_line


def main(argv: Sequence[str] | None = None) -> list[str]:
    """Print the keys that match; return their names."""
    parser = Parser(prog="python -m tools.keys", description="Keys of configurations, their defaults and meanings.")
    parser.add_argument("word", nargs="?", default="", help="part of a name or of a meaning (default: every key)")
    word = parser.parse_args(argv).word
    found = [entry for entry in _all_keys() if word.lower() in f"{entry[1]} {entry[2].about}".lower()]
    if not found:
        close = difflib.get_close_matches(word.upper(), {name for _, name, _ in _all_keys()}, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"{printable(word)}: no key has this word in its name or meaning{hint}")
    for method, name, key in found:
        notes = [key.rule.text, f"for MODEL.TYPE {method}" if method else "", "new" if key.is_new or method else ""]
        print(f"{name} = {key.default!r}", *filter(None, notes), sep="    ")
        print(f"    {key.about}")
    return [name for _, name, _ in found]


def _all_keys() -> Iterator[tuple[str, str, Key]]:
    """Yield (method, or "" for a shared key; name; key)."""
    yield from (("", name, key) for name, key in SHARED_KEYS.items())
    for method, keys in METHODS.items():
        yield from ((method, name, key) for name, key in keys.keys.items())


if __name__ == "__main__":
    command_line.run(main)
