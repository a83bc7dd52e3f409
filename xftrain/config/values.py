"""Checks values of a configuration against annotations, and formats values for messages."""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from xftrain.config.fields import MAX_INTEGER, Described
from xftrain.config.moved_keys import moved_key_error
from xftrain.config.signatures import REQUIRED, Field
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line

# Rules of the attributes of a user's own object.
AttributeRule = Literal["an integer >= 1", "an integer >= 1, or None", "a number, or None"]


def check_fields(
    key: str, fields: Mapping[str, Field], values: Mapping[str, Any], *, owner: str
) -> dict[str, Any]:
    """Checks the values of all fields and fills in defaults; errors name their `owner`."""
    prefix = f"{key}." if key else ""
    for name in values:
        if name not in fields:
            raise ConfigError(
                unknown_key(f"{prefix}{name}", [f"{prefix}{f}" for f in fields], owner)
            )
    checked = {}
    for name, field in fields.items():
        value = values.get(name, field.default)
        if value is REQUIRED or value == "???":
            rule = describe(field.annotation)
            raise ConfigError(f"{prefix}{name} has no value; set it to {rule}.")
        given = name in values
        checked[name] = _check_value(f"{prefix}{name}", field.annotation, value) if given else value
    return checked


def check_attribute(label: str, rule: AttributeRule, value: Any) -> None:
    """Checks an attribute of a user's own object, whose numbers may be NumPy's.

    Args:
        label: the attribute, as the message names it.
        rule: the rule in words.
        value: the value.

    Raises:
        ConfigError: the value breaks the rule.
    """
    kind = Real if rule.startswith("a number") else Integral
    is_none_right = value is None and rule.endswith("or None")
    is_right = isinstance(value, kind) and not isinstance(value, bool)
    if not is_none_right and (not is_right or (kind is Integral and value < 1)):
        raise ConfigError(f"{label} must be {rule}, got {one_line(show(value))}.")


def describe(annotation: Any) -> str:
    """A type and its rules in words: `an integer >= 1 or null`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated and isinstance(args[1], Described):
        return args[1].text
    if origin is Annotated:
        signs = {Ge: ("ge", ">="), Gt: ("gt", ">"), Le: ("le", "<="), Lt: ("lt", "<")}
        rules = [(getattr(rule, signs[type(rule)][0]), signs[type(rule)][1]) for rule in args[1:]]
        return f"{describe(args[0])} " + " and ".join(f"{sign} {limit}" for limit, sign in rules)
    if origin is Literal:
        return "one of " * (len(args) > 1) + ", ".join(str(value) for value in args)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is tuple and args[-1] is not ...:
        return f"a list of {len(args)} values, each {describe(args[0])}"
    if origin in (list, tuple):
        return f"a list of values, each {describe(args[0])}"
    if origin is dict or annotation is dict:
        return "a mapping"
    words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    return words.get(annotation, "null" if annotation in (None, type(None)) else "any value")


def show(value: Any) -> str:
    """Formats a value as in an override."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return repr(value)


def unknown_key(key: str, known: list[str], owner: str) -> str:
    """The error sentence for a key that does not exist or has been renamed."""
    if said := moved_key_error(key):
        return said
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.7):
        return f"{key} is not a key of {owner}; did you mean {near[0]}?"
    listed = ", ".join(name.rpartition(".")[2] for name in known)
    return f"{key} is not a key of {owner}, which has {listed or 'none'}."


def _check_value(key: str, annotation: Any, value: Any) -> Any:
    if annotation is Any:
        return value
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    # validated as JSON, since a strict tuple would refuse YAML's lists; inf and nan never pass
    adapter = TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))
    try:
        checked = adapter.validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError, ValueError):
        finite = " and finite" if isinstance(value, float) and not math.isfinite(value) else ""
        rule = describe(annotation) + finite
        raise ConfigError(f"{key} must be {rule}, got {show(value)}.") from None
    if not _is_within_limits(checked):
        rule = f"{describe(annotation)}, with no integer above {MAX_INTEGER}"
        raise ConfigError(f"{key} must be {rule}, got {show(value)}.")
    return checked


def _is_within_limits(value: Any) -> bool:
    """Whether each integer, alone or in a list, is within the range of torch and the kernels.

    A mapping is an option, whose values are checked when it is built.
    """
    if isinstance(value, list | tuple):
        return all(map(_is_within_limits, value))
    return not isinstance(value, int) or abs(value) <= MAX_INTEGER


def with_lists(node: Any) -> Any:
    """Converts the tuples of a node to lists, as in YAML."""
    if isinstance(node, Mapping):
        return {str(key): with_lists(value) for key, value in node.items()}
    return [with_lists(value) for value in node] if isinstance(node, list | tuple) else node
