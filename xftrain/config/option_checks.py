"""Checks one option of a configuration and returns it as an OptionConfig."""

from __future__ import annotations

from typing import Any

from omegaconf import MISSING

from xftrain.config.option_config import OptionConfig
from xftrain.config.registry import check_built_in, conf_dir, group_of, option_names
from xftrain.config.values import show
from xftrain.errors import ConfigError


def checked_option(key: str, node: Any) -> OptionConfig:
    """Checks the option at a dotted key and fills in its defaults.

    The arguments of a user's own class are not checked here, but in `own_classes`, when the class
    may be imported.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    node, group = mapping_at(key, node), group_of(key)
    if "_target_" in node:
        if "name" in node:
            raise ConfigError(
                f"{key} has both name and _target_; keep the one that names the class."
            )
        return OptionConfig(key, group, node)
    if "name" not in node:
        raise ConfigError(
            f"{key}.name has no value; it must be one of {', '.join(option_names(group))}."
        )
    return OptionConfig(
        key, group, {"name": node["name"], **check_built_in(key, node["name"], node)}
    )


def mapping_at(key: str, node: Any) -> dict[str, Any]:
    """Returns the node of a group, which must be a mapping.

    Raises:
        ConfigError: the node is not a mapping; the message lists the group's options.
    """
    if isinstance(node, dict):
        return {str(name): value for name, value in node.items()}
    group = key.replace(".", "/")
    options = ", ".join(sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")))
    if not options:  # an entry of callbacks or logger
        raise ConfigError(f"{key} must be a mapping with a name or a _target_, got {show(node)}.")
    if node is None or node == MISSING:
        raise ConfigError(f"{key} is missing; choose one of {options}, as in {key}=<option>.")
    raise ConfigError(
        f"{key} is the plain value {show(node)} instead of an option; in a YAML file, "
        f"`override /{group}: <option>` in the defaults list chooses one of {options}."
    )
