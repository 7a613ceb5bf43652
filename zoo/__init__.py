"""Published weights by name: `python -m zoo list`, and models that have them.

    from zoo import build_model
    model = build_model("vit_base_patch16", "mae", pretrained=True)

`zoo.yaml` lists them. Files are downloaded into a cache (`download.py`), ported (`port_weights/`), and the result is
kept beside them. Converted weights keep the licence of their source.
"""

from zoo.entries import Weights, find, table
from zoo.models import build_model, fetch

__all__ = ["Weights", "build_model", "fetch", "find", "table"]
