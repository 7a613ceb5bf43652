"""Fields of a model's description that configuration keys set, and the tensors that they add. No Paddle here."""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple


class Added(NamedTuple):
    """Tensors that an option adds to a model.

    In a name {} stands for the number of a block; one that ends in a dot stands for a weight and a bias.

    Attributes:
        name: ours.
        official: in files of the official code and of timm.
        value: of the option in a model that has them.
    """

    name: str
    official: str
    value: object = True

    @property
    def pattern(self) -> str:
        """Matches the names."""
        return self.name.replace("{}", "*") + ("*" if self.name.endswith(".") else "")

    def is_in(self, names: Collection[str]) -> bool:
        """Return True if a model has them."""
        return self.name.format(0) + ("weight" if self.name.endswith(".") else "") in names


def option(
    default: object,
    key: str,
    only: str = "",
    adds: tuple[str, ...] = (),
    extras: tuple[Added, ...] = (),
    words: str = "",
) -> object:
    """Return a field that a configuration key sets.

    Args:
        only: kind of network that has it; empty: all.
        adds: patterns of the names of usual tensors that are there only with some values of it.
        extras: tensors that only it adds.
        words: what these are, in messages.
    """
    adds += tuple(extra.pattern for extra in extras)
    metadata = {"key": key, "only": only, "adds": adds, "extras": extras, "words": words}
    return dataclasses.field(default=default, metadata=metadata)
