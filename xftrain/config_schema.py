"""The keys that a configuration may have, read from the dataclass of the checked one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from xftrain.run_config import Config, GPTConfig, RunConfig, TrainerConfig
from xftrain.signatures import REQUIRED, Field


def schema_of(config: type[Config]) -> Mapping[str, Field]:
    """The fields of a part of the configuration, by name.

    A group is any value here, None where it is absent: `option_checks` says what it may be.
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
    """Whether a field is a group: a part of the configuration, an option, or several."""
    kinds = (annotation, *get_args(annotation))
    return any(isinstance(kind, type) and is_dataclass(kind) for kind in kinds)


def schemas_of_no_option() -> dict[str, Mapping[str, Field]]:
    """The fields of the root, of `model` and of `trainer`, by dotted key."""
    configs = {"": RunConfig, "model": GPTConfig, "trainer": TrainerConfig}
    return {key: schema_of(config) for key, config in configs.items()}
