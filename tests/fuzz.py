"""Feed a reader with bytes that coverage guides, until one makes it fail (Linux; needs `pip install atheris`).

    python -m tests.fuzz list|config|checkpoint [-secs 600]

Exit code 0 if nothing but errors for the user came out; else the traceback and a file with the bytes.
"""

import runtime

runtime.prepare()

import argparse
import sys
import tempfile
from pathlib import Path

import atheris
import paddle  # noqa: F401  before the instruments, as are its thousand modules

with atheris.instrument_imports():
    import checkpoint  # noqa: F401
    import config  # noqa: F401
    import datasets  # noqa: F401
    import strict_config  # noqa: F401
    from storage import (
        manifest,  # noqa: F401
        safe_pickle,  # noqa: F401
        weight_files,  # noqa: F401
    )
    from training import checkpoints  # noqa: F401

from tests.helpers.fuzz_targets import Targets


def main() -> None:
    """Fuzz until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("list", "config", "checkpoint"))
    parser.add_argument("-secs", type=int, default=600)
    args = parser.parse_args()
    targets = Targets()
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(targets.seeds(args.target)):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-max_total_time={args.secs}", "-max_len=20000", "-timeout=60", "-rss_limit_mb=4096"]
        atheris.Setup([sys.argv[0], *options, corpus], targets.all()[args.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
