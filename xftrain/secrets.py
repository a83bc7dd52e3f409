"""What a configuration read from the environment, so that it is never written down."""

from __future__ import annotations

from hashlib import sha256

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


def hidden(text: str) -> str:
    """The text with the names of variables in place of what they hold."""
    for name, value in READ.items():
        if len(value) >= _LONG:
            text = text.replace(value, f"${{oc.env:{name}}}")
    return text
