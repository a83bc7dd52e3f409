"""The root keys of each command, and the resolvers of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from xftrain.config.command_configs import (
    CommandConfig,
    DataConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    InfoConfig,
    SampleConfig,
)
from xftrain.config.overrides import slug
from xftrain.config.registry import literals
from xftrain.config.run_config import Config, RunConfig
from xftrain.config.schema import holds_options
from xftrain.utils import redaction


def _omegaconf_schema(name: str, config: type[Config], *bases: type) -> type:
    """Derives the OmegaConf schema of a config class, with `Any` for types OmegaConf lacks."""
    inherited = {item.name for base in bases for item in fields(base)}
    hints = get_type_hints(config, include_extras=True)  # messages show the constraints
    keys: list[tuple[str, Any, Any]] = []
    for item in fields(config):
        if item.name in inherited:
            continue
        is_group = holds_options(hints[item.name])
        is_any = is_group or literals(hints[item.name])
        default: Any = field(default=item.default)
        if item.default_factory is not NO_DEFAULT:
            default = field(default_factory=item.default_factory)
        elif is_group:
            default = field(default=MISSING)
        elif isinstance(item.default, tuple):
            default = field(default_factory=list)
        keys.append((item.name, Any if is_any else hints[item.name], default))
    return make_dataclass(name, keys, bases=bases, namespace={"__module__": __name__})


# The ConfigStore holds only these schemas; any other entry would be listed as an option.
Root = _omegaconf_schema("Root", RunConfig)
InfoRoot = _omegaconf_schema("InfoRoot", InfoConfig, Root)
DataRoot = _omegaconf_schema("DataRoot", DataConfig, Root)
SampleRoot = _omegaconf_schema("SampleRoot", SampleConfig)
EvaluateRoot = _omegaconf_schema("EvaluateRoot", EvaluateConfig)
ExportRoot = _omegaconf_schema("ExportRoot", ExportConfig)
DoctorRoot = _omegaconf_schema("DoctorRoot", DoctorConfig)
# The schema and the config class of each command, by the name of its file in conf/.
COMMANDS: dict[str, tuple[type, type[CommandConfig]]] = {
    "root": (Root, RunConfig),
    "info": (InfoRoot, InfoConfig),
    "data": (DataRoot, DataConfig),
    "sample": (SampleRoot, SampleConfig),
    "evaluate": (EvaluateRoot, EvaluateConfig),
    "export": (ExportRoot, ExportConfig),
    "doctor": (DoctorRoot, DoctorConfig),
}
_CONFIGS: dict[type | None, type[CommandConfig]] = dict(COMMANDS.values())


def config_type_of(cfg: DictConfig | Mapping[str, Any]) -> type[CommandConfig]:
    """The config class of a composed configuration, which identifies its command."""
    found = OmegaConf.get_type(cfg) if isinstance(cfg, DictConfig) else None
    return _CONFIGS.get(found, RunConfig)


for _name, (_schema, _) in COMMANDS.items():
    ConfigStore.instance().store(name=f"{_name}_schema", node=_schema)
# Hydra deep-copies the whole store for each group that it lists, half of the time of --help, though
# every config that it loads is a copy anyway.
setattr(ConfigStore, "__deepcopy__", lambda self, memo: self)  # noqa: B010
OmegaConf.register_new_resolver(
    "xf.slug", lambda text: slug(redaction.hidden_in_message(str(text))), replace=True
)
OmegaConf.register_new_resolver("oc.env", redaction.read_variable, replace=True)
OmegaConf.register_new_resolver("oc.decode", redaction.decode, replace=True)
# The next two resolvers only name a folder; `run_folders` makes it when a run starts.
OmegaConf.register_new_resolver("xf.new_folder", lambda path: path, replace=True)
OmegaConf.register_new_resolver("xf.new_run_folder", lambda path: path, replace=True)
OmegaConf.register_new_resolver(
    "xf.unless", lambda condition, value: None if condition else value, replace=True
)
