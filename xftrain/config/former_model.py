"""Completes the `model` node of a checkpoint of an earlier version, which lacks newer keys.

The default of a key is what models computed before there was the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.config.registry import GROUPS, option_names, option_schema
from xftrain.config.run_config import GPTConfig
from xftrain.config.schema import schema_of
from xftrain.config.signatures import REQUIRED, Field

_PREFIX = "model/"
_PARTS = tuple(group.removeprefix(_PREFIX) for group in GROUPS if group.startswith(_PREFIX))


def completed_model(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node, which may be untrusted, with the defaults of the keys that it lacks."""
    completed = {**_defaults(schema_of(GPTConfig)), **_completed_parts(node)}
    layers = node.get("layers")
    if isinstance(layers, Mapping):
        completed["layers"] = {
            name: _completed_parts(entry) if isinstance(entry, Mapping) else entry
            for name, entry in layers.items()
        }
    return completed


def _completed_parts(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _completed_option(f"{_PREFIX}{key}", value) if key in _PARTS else value
        for key, value in node.items()
    }


def _completed_option(group: str, node: Any) -> Any:
    if not isinstance(node, Mapping) or node.get("name") not in option_names(group):
        return node
    return {**_defaults(option_schema(group, node["name"])), **node}


def _defaults(schema: Mapping[str, Field]) -> dict[str, Any]:
    return {key: field.default for key, field in schema.items() if field.default is not REQUIRED}
