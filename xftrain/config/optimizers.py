"""Checks of the optimizers inside an optimizer: `others`, and those of `param_groups`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.config.fields import NonNegativeFloat, Option, PositiveFloat
from xftrain.config.option_config import OptionConfig
from xftrain.config.registry import check_built_in, option_names, option_schema
from xftrain.config.signatures import REQUIRED, Field
from xftrain.config.values import check_fields
from xftrain.errors import ConfigError

_PARAM_GROUP = {
    "match": Field(str, REQUIRED),
    "lr": Field(PositiveFloat | None, None),
    "weight_decay": Field(NonNegativeFloat | None, None),
    "optimizer": Field(Option | None, None),
}


def with_checked_optimizers(optim: OptionConfig) -> OptionConfig:
    """The optimizer with `others` and the entries of `param_groups` checked and completed."""
    # in a user's own class, `param_groups` and `others` may have another meaning
    if (name := optim.name) is None:
        return optim
    groups, others = (optim.options.get(key) for key in ("param_groups", "others"))
    if groups is not None:
        optim = optim.with_options(
            param_groups=tuple(_checked_group(*entry) for entry in enumerate(groups))
        )
    if others is None:
        return optim
    others = _without_keys_of_default(name, others)
    return optim.with_options(others=checked_others("optim", others, optim.lr))


def _without_keys_of_default(name: str, node: Option) -> Option:
    """The node of `others` without default keys that its option lacks.

    Hydra merges an override such as `{name: adafactor}` into the default node, so that the keys of
    the default option remain.

    Args:
        name: the optimizer that has `others`.
        node: the composed value of `others`.

    Raises:
        ConfigError: a user's own class was merged into the default node.
    """
    default = option_schema("optim", name)["others"].default
    if not isinstance(node, Mapping) or not isinstance(default, Mapping):
        return node
    if "_target_" in node and "name" in node:
        raise ConfigError(
            f"optim.others has both name and _target_, as overrides are merged into the default "
            f"optim.others={default['name']}: remove that by ~optim.others, and add the class by "
            "+optim.others={_target_: ...}."
        )
    other = node.get("name")
    if other == default["name"] or other not in option_names("optim"):
        return node
    known = {"name", *option_schema("optim", other)}
    return {
        key: value
        for key, value in node.items()
        if key in known or key not in default or not _are_equal(value, default[key])
    }


def _are_equal(value: Any, default: Any) -> bool:
    """Whether two values are equal, a list and a tuple of the same values included."""
    is_sequence = isinstance(value, list | tuple) and isinstance(default, list | tuple)
    return list(value) == list(default) if is_sequence else value == default


def _checked_group(index: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    key = f"optim.param_groups[{index}]"
    values = check_fields(key, _PARAM_GROUP, entry, owner=key)
    if (node := values["optimizer"]) is not None:
        node = _checked_optimizer(f"{key}.optimizer", node)
        if node.get("others") is not None:
            checked_others(f"{key}.optimizer", node["others"], node["lr"])
    return values


def checked_others(key: str, node: Option, lr: float) -> dict[str, Any]:
    """The node of the option that steps what an optimizer of matrices leaves, completed.

    Args:
        key: the key of the optimizer.
        node: the name of an option of `optim`, or its node, whose `lr` may be null.
        lr: the learning rate of the optimizer, which replaces a null.

    Raises:
        ConfigError: the option has a wrong value, or steps only matrices itself.
    """
    key = f"{key}.others"
    if not isinstance(node, str) and node.get("lr", lr) is None:
        node = {**node, "lr": lr}
    node = _checked_optimizer(key, node)
    if "others" in node:
        raise ConfigError(
            f"{key} must be an optimizer of parameters of any shape, got {node['name']}, which is "
            "for matrices: use adamw."
        )
    return node


def _checked_optimizer(key: str, node: Option) -> dict[str, Any]:
    """The node of an optimizer that steps some of the parameters, completed unless the user's."""
    node = {"name": node} if isinstance(node, str) else dict(node)
    if "param_groups" in node:
        raise ConfigError(f"{key} must have no param_groups: add an entry instead.")
    if "_target_" in node:
        return node
    if "name" not in node:
        raise ConfigError(
            f"{key}.name must be one of {', '.join(option_names('optim'))}, got no name: add one."
        )
    name = str(node["name"])
    completed = {"name": name, **check_built_in(key, name, node)}
    completed.pop("param_groups")
    return completed
