"""The user's own model parts, composed by a command for a checkpoint trained with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.config.values import show, with_lists
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line


class ComposedPart(dict[str, Any]):
    """A model part that this command composed, which therefore may name a class."""


def with_own_parts(
    saved: Mapping[str, Any], own: Mapping[str, Any], shown: Mapping[str, Any]
) -> dict[str, Any]:
    """Merges the model parts that this command composed into a checkpoint's configuration.

    Args:
        saved: the checkpoint's configuration, which is untrusted: classes in it are refused.
        own: parts composed on the command line, by name.
        shown: the same parts with secrets hidden, as a checkpoint holds them.

    Raises:
        ConfigError: a part differs from the checkpoint's.
    """
    model = saved.get("model")
    parts = dict(model) if isinstance(model, Mapping) else {}
    for part, node in own.items():
        here, there = with_lists(shown[part]), with_lists(parts.get(part))
        if here != there:
            raise ConfigError(
                f"model.{part} is {show(here)} here and {show(there)} in the checkpoint: compose "
                "it as for the training run."
            )
        _refuse_changed(part, parts.get("layers"))
        parts[part] = ComposedPart(node)
    return {**saved, "model": parts} if own else dict(saved)


def _refuse_changed(part: str, layers: Any) -> None:
    """Refuses a checkpoint whose layers change the arguments of a user's own class."""
    for name, entry in layers.items() if isinstance(layers, Mapping) else ():
        node = entry.get(part) if isinstance(entry, Mapping) else None
        if isinstance(node, Mapping) and "name" not in node:
            raise ConfigError(
                f"model.layers.{one_line(str(name))}.{part} of the checkpoint sets arguments of "
                f"model.{part}, whose class is your own, and those are not taken from a file: "
                "only a model whose layers share that class can be sampled."
            )
