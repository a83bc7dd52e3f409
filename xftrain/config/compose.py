"""Composes a configuration and checks all of it before any slow import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from xftrain.config.checks import check_sizes, cross_checked
from xftrain.config.command_configs import (
    CheckpointConfig,
    CommandConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    SampleConfig,
)
from xftrain.config.composed_parts import ComposedPart
from xftrain.config.composition_errors import sentence
from xftrain.config.layer_pattern import checked_layers
from xftrain.config.lightning_keys import use_instead
from xftrain.config.merged_options import refuse_merged
from xftrain.config.option_checks import checked_option, mapping_at
from xftrain.config.overrides import (
    all_groups,
    normalize_argv,
    refuse_long_names,
    refuse_non_utf8,
)
from xftrain.config.python_o import refuse_unreadable
from xftrain.config.registry import ENTRY_GROUPS, GROUPS, conf_dir, literals, public_names
from xftrain.config.root_schema import config_type_of
from xftrain.config.run_config import GPTConfig, ModelConfig, Options, RunConfig, TrainerConfig
from xftrain.config.schema import schema_of
from xftrain.config.values import check_fields
from xftrain.errors import ConfigError
from xftrain.utils import redaction
from xftrain.utils.read_variables import register_public_names
from xftrain.utils.yaml_files import refuse_yaml_bombs

ConfigT = TypeVar("ConfigT", bound=CommandConfig)
# the errors of composing and reading a configuration, whatever it holds
COMPOSITION_ERRORS = (
    *(HydraException, OmegaConfBaseException, yaml.YAMLError),
    *(ValueError, TypeError, RecursionError, MemoryError, OverflowError),
)


@cache
def _public_names() -> frozenset[str]:
    """Words such as `cpu` that are not secret even if an environment variable holds them."""
    configs = (
        *(RunConfig, DoctorConfig, SampleConfig, EvaluateConfig, ExportConfig),
        *(TrainerConfig, GPTConfig),
    )
    known = [schema_of(config) for config in configs]
    keys = {key for fields in known for key in fields}
    choices = [literals(field.annotation) for fields in known for field in fields.values()]
    return public_names() | keys.union(*choices)


register_public_names(_public_names)


def compose(
    *overrides: str, config_name: str = "train", config_dir: str | Path | None = None
) -> DictConfig:
    """The configuration that the command line would compose from the same overrides.

    Args:
        overrides: as on the command line, dotted or slashed.
        config_name: the name of a file of conf/ or of `config_dir`.
        config_dir: a folder of your own options, like `--config-dir`.

    Raises:
        ConfigError: an unknown key or option, or a value of the wrong type.
    """
    own = [Path(config_dir).resolve()] if config_dir is not None else []
    for folder in own:
        if not folder.is_dir():
            raise ConfigError(f"config_dir must be a folder, got {str(config_dir)!r}.")
    refuse_yaml_bombs(own)
    refuse_non_utf8(overrides)
    refuse_unreadable(overrides)
    groups = all_groups(*own)
    refuse_long_names([config_name, *overrides], groups)
    typed = normalize_argv(overrides, groups)
    with _isolated_hydra(own):
        try:
            cfg = hydra_compose(config_name, typed, return_hydra_config=True)
            refuse_merged(cfg.hydra)
        except ConfigError:
            raise
        except COMPOSITION_ERRORS as error:
            raise ConfigError(sentence(error, typed)) from error
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@cache
def default_options() -> Mapping[str, Any]:
    """The plain values of `python -m xftrain` without an override, as its YAML files have them.

    They need no check, which would only turn lists into tuples.
    """
    return _plain(compose())


def validate(cfg: DictConfig | Mapping[str, Any]) -> CommandConfig:
    """Checks every value of a configuration and fills in the defaults.

    Only a composed configuration may name classes by `_target_`. A plain mapping may come from an
    untrusted checkpoint, and is refused if it names one.

    Returns:
        The checked configuration: a RunConfig, or the class of the command it was composed for.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    try:
        return _validated(cfg)
    except (RecursionError, MemoryError) as error:
        raise ConfigError(sentence(error)) from error


def validate_as(kind: type[ConfigT], cfg: DictConfig | Mapping[str, Any]) -> ConfigT:
    """Checks a configuration as `validate` does, and requires it to be of one command's class.

    Raises:
        ConfigError: the first fault found, or the configuration is of another command.
    """
    checked = validate(cfg)
    if not isinstance(checked, kind):
        raise ConfigError(f"cfg must be a {kind.__name__}, got a {type(checked).__name__}.")
    return checked


def _validated(cfg: DictConfig | Mapping[str, Any]) -> CommandConfig:
    values = _plain(cfg)
    if not isinstance(cfg, DictConfig):
        _refuse_targets(values)
    kind = config_type_of(cfg)
    checked = check_fields("", schema_of(kind), values, owner="the configuration")
    if issubclass(kind, RunConfig):
        checked |= _checked_groups(checked)
    elif issubclass(kind, CheckpointConfig):
        checked["model"] = _own_parts(checked["model"])
        if kind is EvaluateConfig and checked["data"] is not None:
            checked["data"] = checked_option("data", checked["data"])
    for group in ENTRY_GROUPS:
        if group in checked:
            checked[group] = _checked_entries(group, checked[group])
    made = kind(**checked)
    return cross_checked(made) if isinstance(made, RunConfig) else made


def model_of(saved: Mapping[str, Any]) -> ModelConfig:
    """Checks only the `model` of a checkpoint's configuration.

    The configuration is untrusted: its other keys are not read, no path in it is opened, and
    classes that it names are refused.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    try:
        _refuse_targets(saved.get("model"))
        model = checked_model(saved.get("model"))
    except RecursionError as error:
        raise ConfigError("ckpt holds a configuration nested too deeply: give another.") from error
    check_sizes(model)
    return model


def checked_model(node: Any) -> ModelConfig:
    """Checks the `model` node of a configuration.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    model = mapping_at("model", node)
    parts = [group.partition("/")[2] for group in GROUPS if group.startswith("model/")]
    scalars = {key: value for key, value in model.items() if key not in (*parts, "layers")}
    checked = check_fields("model", schema_of(GPTConfig), scalars, owner="model")
    options: dict[str, Any] = {p: checked_option(f"model.{p}", model.get(p)) for p in parts}
    layers = checked_layers(model.get("layers"), options, checked["num_layers"])
    return ModelConfig(**checked, **options, layers=layers)


def _checked_groups(values: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the groups of a run that take one option each."""
    checked: dict[str, Any] = {"model": checked_model(values["model"])}
    for group in ("loss", "data", "optim", "schedule"):
        checked[group] = checked_option(group, values[group])
    trainer, known = mapping_at("trainer", values["trainer"]), schema_of(TrainerConfig)
    for key in trainer:
        if key not in known and (said := use_instead(f"trainer.{key}")):
            raise ConfigError(said)
    checked["trainer"] = TrainerConfig(**check_fields("trainer", known, trainer, owner="trainer"))
    return checked


def _checked_entries(group: str, node: Any) -> Options:
    """Checks the options of a group that takes several, each under its own key."""
    return MappingProxyType(
        {
            name: checked_option(f"{group}.{name}", entry)
            for name, entry in mapping_at(group, node).items()
            if entry is not None  # callbacks.sample=null removes the callback
        }
    )


def _own_parts(node: Any) -> Options:
    """The model parts that name a class, for a checkpoint that was trained with them."""
    parts = mapping_at("model", node)
    for part, own in parts.items():
        if f"model/{part}" not in GROUPS or "_target_" not in mapping_at(f"model.{part}", own):
            raise ConfigError(
                f"model.{part} comes from the checkpoint, so this command takes only the "
                "parts of the model whose class is your own, as in +model.bias=mine."
            )
    return MappingProxyType({p: checked_option(f"model.{p}", own) for p, own in parts.items()})


@contextmanager
def _isolated_hydra(config_dirs: list[Path]) -> Iterator[None]:
    """Clears and restores Hydra's global state, so that composing works inside a Hydra app too."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        version.setbase("1.3")
        search_path = create_config_search_path(str(conf_dir()))
        for folder in config_dirs:  # at the position where Hydra's command line puts --config-dir
            before = SearchPathQuery(provider="schema")
            search_path.prepend("command-line", f"file://{folder}", before)
        Hydra.create_main_hydra2("xftrain", search_path)
        yield
    finally:
        GlobalHydra.instance().hydra = outer


def _plain(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(cfg, DictConfig):
        return dict(cfg)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        redaction.record_joined_secrets(cfg)
        raise ConfigError(sentence(error)) from error
    redaction.record_joined_secrets(cfg)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if value != MISSING}


def _refuse_targets(node: Any) -> None:
    if isinstance(node, ComposedPart):
        return
    if isinstance(node, Mapping):
        if "_target_" in node:
            raise ConfigError(
                f"_target_: {node['_target_']} names a class in a configuration that was not "
                "composed here, as in a checkpoint; compose it on the command line, as in "
                "--config-dir DIR +model.bias=mine."
            )
        node = node.values()
    elif not isinstance(node, list | tuple):
        return
    for child in node:
        _refuse_targets(child)
