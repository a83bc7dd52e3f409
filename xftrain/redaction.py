"""What a configuration read from the environment, so that it is never written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

READ: dict[str, str] = {}  # by the variable's name
_LONG = 6  # letters from which a value in a sentence is taken for a secret


def read(name: str, *default: str | None) -> str | None:
    """OmegaConf's own `oc.env`, with a note of what it gave."""
    value: str | None = oc.env(name, *default)
    if value is not None:
        READ[name] = value
    return value


def digests() -> dict[str, str]:
    """By variable, enough to tell whether a later run reads another value, and too little for it.

    Twelve bits: a value cannot be guessed from them, and one other in 4096 goes unnoticed.
    """
    return {
        name: sha256(f"xftrain {value}".encode()).hexdigest()[:3] for name, value in READ.items()
    }


def hidden(text: str, shortest: int = _LONG) -> str:
    """The text with the names of variables in place of what they hold.

    Args:
        text: a sentence, or a value.
        shortest: length from which a value is looked for.
    """
    values = [(name, value) for name, value in READ.items() if len(value) >= shortest]
    return _replaced(text, sorted(values, key=lambda pair: -len(pair[1])))


def _replaced(text: str, values: Sequence[tuple[str, str]]) -> str:
    """Longest first, as a seed of 2 would otherwise be looked for in a token, and break it up."""
    if not values:
        return text
    (name, value), *shorter = values
    pieces = [_replaced(piece, shorter) for piece in text.split(value)]
    return f"${{oc.env:{name}}}".join(pieces)


def without_secrets(cfg: DictConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they may be written down: what comes from the environment by its name alone.

    A value composed with `${oc.env:TOKEN}` has that again in place of what TOKEN holds, also where
    it came by way of another key.

    Args:
        cfg: what the options were composed as.
        options: what `config.validate` made of it, or its plain values.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    return _cleared(options, raw) if READ else dict(options)


def _cleared(value: Any, source: Any) -> Any:
    """A value as its source in the configuration lets it be shown."""
    if isinstance(value, Mapping):
        children = source if isinstance(source, Mapping) else dict.fromkeys(value, source)
        return {key: _cleared(child, children.get(key)) for key, child in value.items()}
    if isinstance(value, list | tuple):
        parts = source if isinstance(source, list) else [source] * len(value)
        return [_cleared(child, part) for child, part in zip(value, parts, strict=False)]
    if not isinstance(source, str) or "${" not in source:
        return value
    if isinstance(value, str):
        return hidden(value, shortest=1)
    # a number that was read from a text
    return source if "oc." in source or str(value) in READ.values() else value
