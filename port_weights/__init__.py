"""Convert weights between the names and layouts of MAE's implementations: `python -m port_weights SRC DST`."""

from port_weights.porting import port

__all__ = ["port"]
