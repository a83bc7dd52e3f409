"""`model.layers`: a pattern of named layers that repeats over the depth of a model.

    layers:
      pattern: [local, local, global]
      local: {bias: {name: window, window: 1024}}
      global: {pos: none}

A name overrides parts of the model for its layers. The value of a part is an option's name, with
the values of its YAML file; a mapping with `name`, which overrides some of these values; or a
mapping without `name`, which overrides some values of the model's own option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import yaml

from xftrain.config.option_checks import checked_option
from xftrain.config.option_config import OptionConfig
from xftrain.config.registry import conf_dir, declared, option_names
from xftrain.config.run_config import LayersConfig, ModelConfig, Options
from xftrain.config.values import show, unknown_key
from xftrain.errors import ConfigError

_MAX_KINDS = 64  # different layer names; an untrusted checkpoint may have any number
_NAME = re.compile(r"\w[\w-]*", re.ASCII)


def layer_names(model: ModelConfig) -> tuple[str, ...]:
    """The layer names of the pattern; one empty name if all layers are alike."""
    return model.layers.pattern or ("",)


@dataclass(frozen=True)
class LayerOptions:
    """The options of the parts that may differ by layer."""

    bias: OptionConfig
    pos: OptionConfig
    heads: OptionConfig
    ffn: OptionConfig


def layer_options(model: ModelConfig) -> dict[str, LayerOptions]:
    """The options of each layer name."""
    own = LayerOptions(model.bias, model.pos, model.heads, model.ffn)
    overrides = model.layers.overrides
    return {name: replace(own, **overrides.get(name, {})) for name in layer_names(model)}


PARTS = tuple(field.name for field in fields(LayerOptions))


def checked_layers(node: Any, own: Options, num_layers: int) -> LayersConfig:
    """Checks `model.layers`: its pattern, and the options that each name overrides.

    Args:
        node: the composed node, or None if the model has none.
        own: the checked options of the model.
        num_layers: the model's number of layers.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    if node is None:
        return LayersConfig()
    if not isinstance(node, Mapping):
        raise ConfigError(
            f"model.layers must be a mapping with a pattern, got {show(node)}; a pattern of "
            "conf/layers/ is chosen as layers=<name>."
        )
    entries = {str(name): entry for name, entry in node.items() if name != "pattern"}
    pattern = node.get("pattern")
    if pattern is None:
        if entries:
            named = ", ".join(entries)
            raise ConfigError(
                f"model.layers describes {named} and has no pattern: name the layers of a period, "
                f"as in model.layers.pattern=[{named}]."
            )
        return LayersConfig()
    _check_pattern(pattern, entries, num_layers)
    overrides = {
        name: _checked_entry(f"model.layers.{name}", entries[name], own)
        for name in dict.fromkeys(pattern)
    }
    return LayersConfig(tuple(pattern), MappingProxyType(overrides))


def _check_pattern(pattern: Any, entries: Mapping[str, Any], num_layers: int) -> None:
    is_list = isinstance(pattern, list | tuple) and len(pattern) > 0
    if not is_list or not all(isinstance(name, str) for name in pattern):
        raise ConfigError(
            f"model.layers.pattern must be a list of names or null, got {show(pattern)}."
        )
    for name in pattern:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                "model.layers.pattern must have names of letters, digits, _ and -, got "
                f"{show(name)}."
            )
        if name not in entries:
            known = f", which has {', '.join(entries)}" if entries else ""
            raise ConfigError(
                f"model.layers.pattern names {show(name)}, which model.layers does not "
                f"describe{known}: add it, as in +model.layers.{name}.bias=window."
            )
    if len(set(pattern)) > _MAX_KINDS:
        raise ConfigError(
            f"model.layers.pattern must have at most {_MAX_KINDS} different names, got "
            f"{len(set(pattern))}."
        )
    if len(pattern) > num_layers:
        raise ConfigError(
            f"model.layers.pattern names {len(pattern)} layers and model.num_layers is "
            f"{num_layers}, so that its last names would be unused: shorten it, or raise "
            "model.num_layers."
        )


def _checked_entry(key: str, entry: Any, own: Options) -> Options:
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{key} must be a mapping from {', '.join(PARTS)} to options, got {show(entry)}."
        )
    checked: dict[str, OptionConfig] = {}
    for part, given in entry.items():
        if part not in PARTS:
            raise ConfigError(_unknown_part(key, str(part)))
        part_key = f"{key}.{part}"
        checked[part] = checked_option(part_key, _completed(part_key, part, given, own[part]))
        if part == "pos":
            _check_position(checked[part], own["pos"])
    return MappingProxyType(checked)


def _unknown_part(key: str, part: str) -> str:
    """The error sentence for a key of a layer; a field of an option is shown in its place."""
    for group in PARTS:
        for name in option_names(f"model/{group}"):
            if part in _file_values(group, name):
                return f"{key}.{part} is not a key of {key}; did you mean {key}.{group}.{part}?"
    return unknown_key(f"{key}.{part}", [f"{key}.{name}" for name in PARTS], key)


def _completed(key: str, part: str, given: Any, own: OptionConfig) -> Any:
    """Completes the node of a part with the values that the entry omits."""
    node = {"name": given} if isinstance(given, str) else given
    if not isinstance(node, Mapping):
        raise ConfigError(f"{key} must be an option's name or a mapping, got {show(given)}.")
    if "_target_" in node:
        return dict(node)
    if "name" not in node or node["name"] == own.name:
        return {**own.to_dict(), **node}
    return {**_file_values(part, node["name"]), **node}


def _file_values(part: str, name: Any) -> dict[str, Any]:
    """The values in an option's YAML file; empty if there is no such option."""
    if name not in option_names(f"model/{part}"):
        return {}
    text = (conf_dir() / "model" / part / f"{name}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    return {key: value for key, value in values.items() if "${" not in str(value)}


def _check_position(pos: OptionConfig, own: OptionConfig) -> None:
    changes = pos.name is not None and declared("model/pos", pos.name, "changes_embeddings")
    if changes and pos != own:
        raise ConfigError(
            f"{pos.key}={pos.name} adds to the embeddings, before the first layer: set it as "
            "model.pos, and use rope or none in a layer."
        )
