"""Reads values of an untrusted `config.json`, with their types checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line

_MAX = 1 << 31


def wrong(key: str, rule: str, value: Any) -> ConfigError:
    """The error that says which value of the file breaks which rule; the caller names the file."""
    return ConfigError(f"config.json has {key} = {one_line(repr(value))[:80]}, and {rule}.")


def _value(config: Mapping[str, Any], key: str, default: Any) -> Any:
    value = config.get(key)
    return default if value is None else value


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer; null and an absent key are the default."""
    value = _value(config, key, default)
    if type(value) is not int or not 0 < value < _MAX:
        raise wrong(key, "it must be a positive integer", value)
    return value


def number(config: Mapping[str, Any], key: str, default: float) -> float:
    """A positive number; null and an absent key are the default."""
    value = _value(config, key, default)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise wrong(key, "it must be a positive number", value)
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean; null and an absent key are the default."""
    value = _value(config, key, default)
    if type(value) is not bool:
        raise wrong(key, "it must be true or false", value)
    return value


def one_of(config: Mapping[str, Any], key: str, allowed: Mapping[str, str], default: str) -> str:
    """What an allowed value stands for; null and an absent key are the default."""
    value = _value(config, key, default)
    if not isinstance(value, str) or value not in allowed:
        raise wrong(key, f"it must be one of {', '.join(allowed)}", value)
    return allowed[value]


def plain_ffn(config: Mapping[str, Any], key: str, default: str) -> dict[str, Any]:
    """The option of a feed-forward without a gate, by the name of its activation."""
    names = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "exact", "relu2": "relu2"}
    name = one_of(config, key, names, default)
    return {"name": "gelu", "exact": True} if name == "exact" else {"name": name}


def expect(config: Mapping[str, Any], key: str, *allowed: Any) -> None:
    """Refuses values other than those with which our model computes the same."""
    value = config.get(key, allowed[0])
    if not any(value == one and type(value) is type(one) for one in allowed):
        raise wrong(key, f"xftrain has only {' or '.join(map(repr, allowed))}", value)
