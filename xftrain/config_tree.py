"""A configuration as a tree of plain text: what differs from the defaults, or the whole."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

_WIDTH = 100
_HEADS = ("name", "_target_")  # keys that say which option a group has


def config_tree(options: Mapping[str, Any], title: str = "configuration") -> str:
    """The tree; an option's name stands beside its group, and a long line is cut off.

    Args:
        options: what `config.validate` returns.
        title: the first line.
    """
    tree = Tree(title)
    _grow(tree, options)
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(tree)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def changes(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The tree of what differs from the defaults."""
    if differing := changed(options, defaults):
        return config_tree(differing, "configuration, what differs from the defaults:")
    return "configuration: the defaults"


def changed(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that differs from the defaults.

    A group with another option has all values of it, as the defaults have none to compare with.

    Args:
        options: what `config.validate` returns.
        defaults: the same of the configuration that nobody has changed.
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        if key not in defaults:
            found[key] = value
        elif isinstance(value, Mapping) and isinstance(defaults[key], Mapping):
            there = defaults[key]
            is_same_option = all(value.get(head) == there.get(head) for head in _HEADS)
            differing = changed(value, there) if is_same_option else dict(value)
            if differing:
                named = {head: value[head] for head in _HEADS if head in value}
                found[key] = named | differing
        elif value != defaults[key]:
            found[key] = value
    # what the defaults have and this configuration leaves out, as a callback
    left_out = {k: None for k, v in defaults.items() if k not in options and isinstance(v, Mapping)}
    return found | left_out


def _grow(tree: Tree, node: Mapping[str, Any]) -> None:
    for key, value in node.items():
        if not isinstance(value, Mapping):
            tree.add(_line(key, value))
            continue
        # as in attn: sdpa; an entry of callbacks mostly has the name of its key
        head = next((named for named in _HEADS if named in value), None)
        branch = tree.add(_line(key, value[head]) if head and value[head] != key else _line(key))
        _grow(branch, {inner: part for inner, part in value.items() if inner != head})


def _line(key: str, *values: Any) -> Text:
    """One line, whatever is in the key and in its value, where it has one."""
    shown = [one if isinstance(one, str) else json.dumps(one, default=str) for one in values]
    # Text: rich would take a list for markup
    return Text(" ".join(": ".join([key, *shown]).split()), no_wrap=True, overflow="ellipsis")
