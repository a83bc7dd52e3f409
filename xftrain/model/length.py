"""The maximum length of a document, which the position encodings of a model set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from xftrain.errors import ConfigError
from xftrain.interfaces import format_layers


def smallest_limit(encodings: Iterable[Any]) -> int | None:
    """The smallest `max_positions` of some position encodings; None is no limit."""
    limits = (pos.max_positions for pos in encodings)
    return min((limit for limit in limits if limit is not None), default=None)


def refuse_length(num_positions: int, common: Any, of_layers: Sequence[Any]) -> None:
    """Raises ConfigError if a document is longer than the maximum of a position encoding.

    Args:
        num_positions: length of the document.
        common: the position encoding of the model.
        of_layers: the position encoding of each layer.
    """
    limit = smallest_limit((common, *of_layers))
    if limit is None or num_positions <= limit:
        return
    key, other = "model.pos.max_positions", "model.pos=rope"
    if common.max_positions != limit:
        layers = [n for n, pos in enumerate(of_layers) if pos.max_positions == limit]
        key, other = f"max_positions of pos in {format_layers(layers)}", "pos: rope there"
    raise ConfigError(
        f"{key} is {limit}, too few for a document of {num_positions} tokens: raise it, or use "
        f"{other}."
    )
