"""One checked option of a group, or a user's own class in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class OptionConfig:
    """An option with its checked keyword arguments; compared by value.

    The keyword arguments are attributes too, as in `cfg.data.batch_size`, unless they have the name
    of one of the attributes here; `options` has all of them.

    Attributes:
        key: the dotted key that messages name, as in `model.bias` or `callbacks.metrics`.
        group: the group of the option, as in `model/bias`.
        node: the option's `name` or the user's `_target_`, and the keyword arguments; read-only at
            any depth, so that lists are tuples.
    """

    key: str = field(compare=False)
    group: str
    node: Mapping[str, Any]
    _saved: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_saved", _copied(self.node))
        object.__setattr__(self, "node", _read_only(self._saved))

    def __getattr__(self, name: str) -> Any:
        """A keyword argument, read-only at any depth."""
        # copying asks an object without attributes for some whose names begin with _
        if name.startswith("_") or name == "node" or name not in self.node:
            raise AttributeError(f"an option has no attribute or field {name}")
        return self.node[name]

    @property
    def name(self) -> str | None:
        """The name of a built-in option; None for a class of the user's own."""
        return self.node.get("name")

    @property
    def target(self) -> str | None:
        """The full name of a class of the user's own; None for a built-in option."""
        return self.node.get("_target_")

    @property
    def label(self) -> str:
        """The name or the class, as messages show it."""
        return str(self.node.get("name", self.target))

    @property
    def options(self) -> dict[str, Any]:
        """A copy of the keyword arguments, as they are saved."""
        return {k: v for k, v in self.to_dict().items() if k not in ("name", "_target_")}

    def with_options(self, **changed: Any) -> OptionConfig:
        """Returns the option with some keyword arguments replaced."""
        return replace(self, node={**self._saved, **changed})

    def to_dict(self) -> dict[str, Any]:
        """A copy of the option as it is saved, with the lists and tuples that it was given."""
        saved: dict[str, Any] = _copied(self._saved)
        return saved


def _copied(value: Any) -> Any:
    """A copy of a plain structure, which keeps lists and tuples apart."""
    if isinstance(value, Mapping):
        return {key: _copied(child) for key, child in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return value


def _read_only(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _read_only(child) for key, child in value.items()})
    return tuple(map(_read_only, value)) if isinstance(value, list | tuple) else value
