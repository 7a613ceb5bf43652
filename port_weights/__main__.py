"""Convert weights between implementations of MAE.

    python -m port_weights SRC DST [-to official|timm|transformers|maws|paddledetection|paddleseg|detectron2]

SRC is a weight file of the official MAE, PaddleViT, PASSL, timm, transformers (or its directory), MAE-Lite, MAE-CT or
MAWS, or a run or checkpoint of this project; the project it comes from is recognised. DST is a .pdparams or
.safetensors file; a .yaml beside it builds the model. With -to, names and layout of another implementation are written.
"""

import re
import sys
from collections.abc import Sequence

import program
from arguments import Parser
from errors import UserError
from port_weights.porting import port
from port_weights.writing import TARGETS


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, print the report, and return the exit code: 0, or 1 after an error."""
    parser = Parser(prog="python -m port_weights", description=__doc__)
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("destination", metavar="DST")
    parser.add("to", "project whose names and layout to write (default: paddle)", choices=TARGETS, default="paddle")
    parser.add(
        "heads",
        "numbers of attention heads, where neither the file nor its size tells them",
        metavar="ENCODER[,DECODER] or IMAGE,TEXT",
    )
    parser.add("grid", "patches of the image, where it is not square", metavar="ROWS,COLUMNS")
    parser.add(
        "norm_pix_loss",
        "whether the decoder predicts normalised pixels, where the file does not tell",
        choices=("True", "False"),
    )
    parser.add("entry", "where SRC keeps the weights, for example model_ema", metavar="NAME")
    parser.add("head", "head of efficient probing to put on the encoder (ep_head.pth)", metavar="FILE")
    args = parser.parse_args(argv)
    try:
        heads = _numbers("-heads", args.heads, (1, 2))
        grid = _numbers("-grid", args.grid, (2,))
        report = port(
            args.source,
            args.destination,
            target=args.to,
            heads=(*heads, None, None)[:2],
            grid_hw=grid or None,
            entry=args.entry,
            head=args.head,
            norm_pix_loss=None if args.norm_pix_loss is None else args.norm_pix_loss == "True",
        )
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).splitlines()), file=sys.stderr)
        return 1
    print(report)
    return 0


def _numbers(flag: str, text: str | None, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Read integers above 0, separated by commas."""
    if text is None:
        return ()
    parts = text.split(",")
    if len(parts) not in counts or not all(re.fullmatch(r"\s*[1-9]\d{0,5}\s*", part) for part in parts):
        raise UserError(f"{flag} {text}: expected {' or '.join(map(str, counts))} integers, separated by a comma")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    program.run(lambda: sys.exit(main()), error_code=1)
