"""What a file of `families/` has, and which class of `transformers` expresses a model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from xftrain.errors import ConfigError
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap
from xftrain.utils.printable import one_line

_FOLDER = Path(__file__).parent / "families"


class Family(Protocol):
    """A class of `transformers`, as a module of `families/`.

    Attributes:
        ARCHITECTURE: name of the class.
        PRECEDENCE: of several classes that express a model, the one with the lowest is chosen.
    """

    ARCHITECTURE: str
    PRECEDENCE: int

    def reasons(self, facts: Facts) -> list[str]:
        """Reasons why the class cannot express a model; empty if it does."""
        ...

    def config(self, facts: Facts, max_positions: int) -> dict[str, Any]:
        """The class's own keys of `config.json`."""
        ...

    def key_map(self, facts: Facts) -> KeyMap:
        """Where the class has the weights of a model."""
        ...

    def model(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The `model` node of the model that a `config.json` describes.

        Raises:
            ConfigError: the file describes what no option here computes.
        """
        ...


def families() -> list[Family]:
    """All families, found on disk."""
    names = sorted(path.stem for path in _FOLDER.glob("[a-z]*.py"))
    found: list[Any] = [importlib.import_module(f"{__package__}.families.{n}") for n in names]
    return sorted(found, key=lambda family: family.PRECEDENCE)


def _reasons_of_logits(facts: Facts) -> list[str]:
    """Why no family here expresses capped logits: Gemma 2, which caps them, is none of them."""
    is_capped = facts.logit_softcap is not None
    return ["does not cap logits (model.logit_softcap=null)"] if is_capped else []


def family_for(facts: Facts) -> Family:
    """The class that expresses a model.

    Raises:
        ConfigError: there is none; the message says what keeps the nearest one from it.
    """
    if facts.reasons:
        raise ConfigError(
            "format=hf cannot express this model in a class of transformers, as "
            f"{'; '.join(facts.reasons)}, a class of your own: load the weights of its run, "
            "weights.safetensors, with that class."
        )
    nearest: tuple[Family, list[str]] | None = None
    for family in families():
        reasons = [*_reasons_of_logits(facts), *family.reasons(facts)]
        if not reasons:
            return family
        if nearest is None or len(reasons) < len(nearest[1]):
            nearest = family, reasons
    assert nearest is not None
    raise ConfigError(
        "format=hf cannot express this model in a class of transformers; the nearest is "
        f"{nearest[0].ARCHITECTURE}, which {'; '.join(nearest[1])}."
    )


def family_of(config: Mapping[str, Any], named: str) -> Family:
    """The class that a `config.json` names.

    Args:
        config: content of the file.
        named: the override that names its folder, for the message.

    Raises:
        ConfigError: it is another class.
    """
    known = {family.ARCHITECTURE: family for family in families()}
    if "auto_map" in config:
        raise ConfigError(
            f"{named} has code of its own (auto_map in config.json), which is never run: give a "
            f"folder of one of {', '.join(known)}."
        )
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"{named} must be a folder of one of {', '.join(known)}, got "
            f"{one_line(str(name))[:80]} in its config.json."
        )
    return known[name]
