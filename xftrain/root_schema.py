"""The root keys of each command, and the resolvers of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from xftrain import redaction
from xftrain.config_schema import holds_options
from xftrain.overrides import slug
from xftrain.registry import literals
from xftrain.run_config import (
    CommandConfig,
    Config,
    DoctorConfig,
    InfoConfig,
    RunConfig,
    SampleConfig,
)


def _omegaconf_schema(name: str, config: type[Config], *bases: type) -> type:
    """The keys of a checked configuration, with `Any` where OmegaConf lacks the type."""
    inherited = {item.name for base in bases for item in fields(base)}
    hints = get_type_hints(config, include_extras=True)  # rules that messages name
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


# The only schemas in the ConfigStore, where any other would be an option.
Root = _omegaconf_schema("Root", RunConfig)
InfoRoot = _omegaconf_schema("InfoRoot", InfoConfig, Root)
SampleRoot = _omegaconf_schema("SampleRoot", SampleConfig)
DoctorRoot = _omegaconf_schema("DoctorRoot", DoctorConfig)
_CONFIGS: dict[type | None, type[CommandConfig]] = {
    InfoRoot: InfoConfig,
    SampleRoot: SampleConfig,
    DoctorRoot: DoctorConfig,
}


def config_type_of(cfg: DictConfig | Mapping[str, Any]) -> type[CommandConfig]:
    """The checked configuration that a composed one makes, which says what its command is."""
    found = OmegaConf.get_type(cfg) if isinstance(cfg, DictConfig) else None
    return _CONFIGS.get(found, RunConfig)


ConfigStore.instance().store(name="root_schema", node=Root)
ConfigStore.instance().store(name="info_schema", node=InfoRoot)
ConfigStore.instance().store(name="sample_schema", node=SampleRoot)
ConfigStore.instance().store(name="doctor_schema", node=DoctorRoot)
# Hydra copies the whole store for each group that it lists, though what it loads is a copy anyway:
# half of the time of --help.
setattr(ConfigStore, "__deepcopy__", lambda self, memo: self)  # noqa: B010
OmegaConf.register_new_resolver(
    "xf.slug", lambda text: slug(redaction.hidden(str(text))), replace=True
)
OmegaConf.register_new_resolver("oc.env", redaction.read, replace=True)
OmegaConf.register_new_resolver("oc.decode", redaction.decode, replace=True)
# a folder that `run_folders` makes where a run starts; naming it makes nothing
OmegaConf.register_new_resolver("xf.new_folder", lambda path: path, replace=True)
OmegaConf.register_new_resolver("xf.new_run_folder", lambda path: path, replace=True)
OmegaConf.register_new_resolver(
    "xf.unless", lambda condition, value: None if condition else value, replace=True
)
