"""Parts of a model that a command composed, for a checkpoint that was trained with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.errors import ConfigError
from xftrain.printable import one_line
from xftrain.values import show


class Composed(dict[str, Any]):
    """A part of a model that this command composed, so that it may name a class."""


def with_own_parts(
    saved: Mapping[str, Any], own: Mapping[str, Any], shown: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration of a checkpoint, with the parts of the model that this command composed.

    Args:
        saved: of the checkpoint, which may come from anyone: classes that it names are refused.
        own: parts composed on the command line, by their names.
        shown: the same as they may be written down, which is what the checkpoint holds.

    Raises:
        ConfigError: a part differs from that of the checkpoint.
    """
    model = saved.get("model")
    parts = dict(model) if isinstance(model, Mapping) else {}
    for part, node in own.items():
        here, there = _as_typed(shown[part]), _as_typed(parts.get(part))
        if here != there:
            raise ConfigError(
                f"model.{part} is {show(here)} here and {show(there)} in the checkpoint: compose "
                "it as for the training run."
            )
        _refuse_changed(part, parts.get("layers"))
        parts[part] = Composed(node)
    return {**saved, "model": parts} if own else dict(saved)


def _refuse_changed(part: str, layers: Any) -> None:
    """Refuses a layer of a checkpoint that changes what a class of the user's is given."""
    for name, entry in layers.items() if isinstance(layers, Mapping) else ():
        node = entry.get(part) if isinstance(entry, Mapping) else None
        if isinstance(node, Mapping) and "name" not in node:
            raise ConfigError(
                f"model.layers.{one_line(str(name))}.{part} of the checkpoint sets arguments of "
                f"model.{part}, whose class is your own, and those are not taken from a file: "
                "only a model whose layers share that class can be sampled."
            )


def _as_typed(node: Any) -> Any:
    """A node with lists in place of tuples, as YAML has them."""
    if isinstance(node, Mapping):
        return {str(key): _as_typed(value) for key, value in node.items()}
    return [_as_typed(value) for value in node] if isinstance(node, list | tuple) else node
