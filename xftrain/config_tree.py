"""A configuration as a tree of plain text, one line for a value."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

_WIDTH = 100


def config_tree(options: Mapping[str, Any]) -> str:
    """The tree; an option's name stands beside its group, and a long line is cut off.

    Args:
        options: what `config.validate` returns.
    """
    tree = Tree("configuration")
    _grow(tree, options)
    text = io.StringIO()
    Console(file=text, width=_WIDTH).print(tree)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _grow(tree: Tree, node: Mapping[str, Any]) -> None:
    for key, value in node.items():
        if not isinstance(value, Mapping):
            tree.add(_line(key, value))
            continue
        # as in attn: sdpa; an entry of callbacks mostly has the name of its key
        head = next((named for named in ("name", "_target_") if named in value), None)
        branch = tree.add(_line(key, value[head]) if head and value[head] != key else Text(key))
        _grow(branch, {inner: part for inner, part in value.items() if inner != head})


def _line(key: str, value: Any) -> Text:
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    # Text: rich would take a list for markup
    return Text(" ".join(f"{key}: {shown}".split()), no_wrap=True, overflow="ellipsis")
