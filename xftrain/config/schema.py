"""The keys that a configuration may have, read from the dataclasses of `run_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from xftrain.config.run_config import Config, GPTConfig, RunConfig, TrainerConfig
from xftrain.config.signatures import REQUIRED, Field


def schema_of(config: type[Config]) -> Mapping[str, Field]:
    """The fields of a config class, by name.

    The field of a config group accepts any value here, None if it is absent; `option_checks`
    checks it.
    """
    hints = get_type_hints(config, include_extras=True)
    schema = {}
    for item in fields(config):
        if holds_options(hints[item.name]):
            empty = None if item.default_factory is MISSING else item.default_factory()
            schema[item.name] = Field(Any, empty)
        else:
            default = REQUIRED if item.default is MISSING else item.default
            schema[item.name] = Field(hints[item.name], default)
    return schema


def holds_options(annotation: Any) -> bool:
    """Whether a field is a config group: a nested config, an option, or several options."""
    kinds = (annotation, *get_args(annotation))
    return any(isinstance(kind, type) and is_dataclass(kind) for kind in kinds)


def framework_schemas() -> dict[str, Mapping[str, Field]]:
    """The fields that belong to no option: those of the root, `model` and `trainer`."""
    configs = {"": RunConfig, "model": GPTConfig, "trainer": TrainerConfig}
    return {key: schema_of(config) for key, config in configs.items()}
