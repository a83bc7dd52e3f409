"""One checked option of a group, or a user's own class in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class OptionConfig:
    """An option with its checked keyword arguments; compared by value.

    Attributes:
        key: the dotted key that messages name, as in `model.bias` or `callbacks.metrics`.
        group: the group of the option, as in `model/bias`.
        node: the option as it is saved, read-only: its `name` or the user's `_target_`, and the
            keyword arguments.
    """

    key: str = field(compare=False)
    group: str
    node: Mapping[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "node", MappingProxyType(dict(self.node)))

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
        """The keyword arguments."""
        return {key: value for key, value in self.node.items() if key not in ("name", "_target_")}

    def with_options(self, **changed: Any) -> OptionConfig:
        """Returns the option with some keyword arguments replaced."""
        return replace(self, node={**self.node, **changed})

    def to_dict(self) -> dict[str, Any]:
        """The option as it is saved."""
        return dict(self.node)
