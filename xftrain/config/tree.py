"""Shows a configuration as a tree of plain text: all of it, or only what is not a default."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from xftrain.config.values import with_lists

_WIDTH = 100
_OPTION_KEYS = ("name", "_target_")  # the keys that name a group's option


def config_tree(options: Mapping[str, Any], title: str = "configuration") -> str:
    """Renders a configuration as a tree, with each option's name beside its group.

    Long lines are cut off.

    Args:
        options: the checked configuration as plain values.
        title: the first line.
    """
    tree = Tree(title)
    _add_branches(tree, options)
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(tree)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def changes_tree(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Renders the values that differ from the defaults as a tree."""
    if differing := changed_values(options, defaults):
        return config_tree(differing, "configuration, what differs from the defaults:")
    return "configuration: the defaults"


def changed_values(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that differs from the defaults.

    A group with another option than the default is returned with all its values.

    Args:
        options: the checked configuration as plain values.
        defaults: the same without any override; YAML has lists where checked values are tuples.
    """
    found: dict[str, Any] = {}
    for key, value in options.items():
        if key not in defaults:
            found[key] = value
        elif isinstance(value, Mapping) and isinstance(defaults[key], Mapping):
            there = defaults[key]
            is_same_option = all(value.get(head) == there.get(head) for head in _OPTION_KEYS)
            differing = changed_values(value, there) if is_same_option else dict(value)
            if differing:
                named = {head: value[head] for head in _OPTION_KEYS if head in value}
                found[key] = named | differing
        elif with_lists(value) != with_lists(defaults[key]):
            found[key] = value
    # keys of the defaults that this configuration lacks, such as a removed callback
    left_out = {k: None for k, v in defaults.items() if k not in options and isinstance(v, Mapping)}
    return found | left_out


def _add_branches(tree: Tree, node: Mapping[str, Any]) -> None:
    for key, value in node.items():
        if not isinstance(value, Mapping):
            tree.add(_line(key, value))
            continue
        # for example `attn: sdpa`; an entry of callbacks usually has the name of its key
        head = next((name for name in _OPTION_KEYS if name in value), None)
        branch = tree.add(_line(key, value[head]) if head and value[head] != key else _line(key))
        _add_branches(branch, {inner: part for inner, part in value.items() if inner != head})


def _line(key: str, *values: Any) -> Text:
    """Joins a key and its value, if any, into one line of printable text."""
    shown = [one if isinstance(one, str) else json.dumps(one, default=str) for one in values]
    # a Text, since rich would parse a list such as `[bold]` as markup
    return Text(" ".join(": ".join([key, *shown]).split()), no_wrap=True, overflow="ellipsis")
