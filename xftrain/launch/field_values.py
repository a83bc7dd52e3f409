"""The allowed values of a key, if they can be listed, for shell completion."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from xftrain.config.registry import GROUPS, group_of, option_names, option_schema
from xftrain.config.schema import framework_schemas


def values_of(key: str) -> list[str]:
    """The allowed values of a dotted key, as typed in an override; empty if they are unlimited.

    The fields of all options of a group are included, since the command line may choose any option.
    """
    parent, _, name = key.rpartition(".")
    schemas = [framework_schemas().get(parent, {})]
    if parent and (group := group_of(parent)) in GROUPS:
        schemas += [option_schema(group, option) for option in option_names(group)]
    found = [_listed(fields[name].annotation) for fields in schemas if name in fields]
    return list(dict.fromkeys(value for values in found for value in values))


def _listed(annotation: Any) -> list[str]:
    if annotation is bool:
        return ["true", "false"]
    if annotation is type(None):
        return ["null"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [value for part in get_args(annotation) for value in _listed(part)]
