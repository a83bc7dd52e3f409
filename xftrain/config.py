"""Composing a configuration and checking all of it, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.conf import HydraConf
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from xftrain import redaction
from xftrain.composed_parts import Composed
from xftrain.composition_errors import sentence
from xftrain.config_checks import (
    check_compile,
    check_files,
    check_packages,
    check_param_groups,
    check_sizes,
    check_trainer,
)
from xftrain.errors import ConfigError
from xftrain.layer_pattern import checked_layers
from xftrain.optimized import refuse_unreadable
from xftrain.overrides import (
    all_groups,
    normalise_argv,
    refuse_long_names,
    refuse_other_text,
)
from xftrain.registry import (
    ENTRY_GROUPS,
    PACKAGES,
    check,
    conf_dir,
    group_of,
    literals,
    names,
    words,
)
from xftrain.root_schema import DoctorRoot, InfoRoot, Root, SampleRoot
from xftrain.signatures import Field, fields_of
from xftrain.training.use_instead import use_instead
from xftrain.values import check_fields, show
from xftrain.yaml_files import refuse_yaml_bombs

GUARD_KEYS = ("on_nonfinite", "max_skipped_steps")  # root keys of the NonFiniteGuard
# of composing and reading a configuration, whatever is in it
COMPOSITION_ERRORS = (
    *(HydraException, OmegaConfBaseException, yaml.YAMLError),
    *(ValueError, TypeError, RecursionError, MemoryError, OverflowError),
)


@cache
def _public_words() -> frozenset[str]:
    """What is no secret where a variable of the environment holds it, as `cpu`."""
    roots = [_root_fields(schema) for schema in (Root, DoctorRoot, SampleRoot)]
    known = [*roots, _trainer_fields(), fields_of("xftrain.model", "GPT")]
    keys = {key for fields in known for key in fields}
    choices = [literals(field.annotation) for fields in known for field in fields.values()]
    return words() | keys.union(*choices)


redaction.public_words = _public_words


def compose(
    *overrides: str, config_name: str = "train", config_dir: str | Path | None = None
) -> DictConfig:
    """The configuration that the command line would compose from the same overrides.

    Args:
        overrides: as on the command line, dotted or slashed.
        config_name: a file of conf/ or of `config_dir`.
        config_dir: a folder of your own options, as `--config-dir`.

    Raises:
        ConfigError: an unknown key or option, or a value of the wrong type.
    """
    own = [Path(config_dir).resolve()] if config_dir is not None else []
    for folder in own:
        if not folder.is_dir():
            raise ConfigError(f"config_dir must be a folder, got {str(config_dir)!r}.")
    refuse_yaml_bombs(own)
    refuse_other_text(overrides)
    refuse_unreadable(overrides)
    groups = all_groups(*own)
    refuse_long_names([config_name, *overrides], groups)
    typed = normalise_argv(overrides, groups)
    with _own_hydra(own):
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
    """The checked configuration of `python -m xftrain` without an override."""
    return validate(compose())


def refuse_merged(hydra_cfg: DictConfig | HydraConf) -> None:
    """Refuses several options for one group, `model.attn=[naive,sdpa]`, merged without a word.

    Args:
        hydra_cfg: the `hydra` node of a composed configuration, with Hydra still initialized.

    Raises:
        ConfigError: a group that takes one option got several, in an override or in a file.
    """
    groups = ("model", "model/layers", "trainer", *PACKAGES)
    single = [group for group in groups if group not in ENTRY_GROUPS]
    if all(group in hydra_cfg.runtime.choices for group in single):
        return  # Hydra notes no choice for a group that was given a list
    typed = [*hydra_cfg.overrides.hydra, *hydra_cfg.overrides.task]
    loader = GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(hydra_cfg.job.config_name, typed, RunMode.RUN).defaults
    for group in single:
        chosen = [
            Path(str(item.config_path)).name
            for item in defaults
            if Path(str(item.config_path)).parent.as_posix() == group
            # trainer/cpu builds on trainer/auto; that is no second choice
            and Path(str(item.parent)).parent.as_posix() != group
        ]
        if len(chosen) > 1:
            key, listed = group.replace("/", "."), ",".join(chosen)
            raise ConfigError(
                f"{key} takes one option, got [{listed}]; "
                f"to run one job for each, add -m and write {key}={listed}."
            )


def validate(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The whole configuration as plain values, every one of them checked, defaults filled in.

    Classes named by `_target_` are for configurations that were composed. A plain mapping may
    come from a checkpoint, that is from anyone, and is refused if it has one.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    try:
        return _validated(cfg)
    except (RecursionError, MemoryError) as error:
        raise ConfigError(sentence(error)) from error


def _validated(cfg: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    values = _plain(cfg)
    if not isinstance(cfg, DictConfig):
        _refuse_targets(values)
    root = root_of(cfg)
    options = check_fields("", _root_fields(root), values, owner="the configuration")
    is_run = issubclass(root, Root)
    if is_run:
        options |= _checked_groups(options)
    if root is SampleRoot:
        options["model"] = _own_parts(options["model"])
    for group in ENTRY_GROUPS:
        if group in options:
            options[group] = {
                name: _checked_option(f"{group}.{name}", entry)
                for name, entry in _mapping(group, options[group]).items()
                if entry is not None  # callbacks.sample=null leaves it out
            }
    if is_run:
        check_sizes(options["model"])
        check_param_groups(options["optim"])
        check_compile(options)
        check_trainer(options["trainer"])
        check_packages(options["logger"])
        check_files(options)
    return options


def model_of(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The checked options of `model` alone in the configuration of a checkpoint.

    The configuration may be of anyone: nothing else in it is looked at, no path in it is opened,
    and classes that it names are refused.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    try:
        _refuse_targets(saved.get("model"))
        model = _checked_model(saved.get("model"))
    except RecursionError as error:
        raise ConfigError("ckpt holds a configuration nested too deeply: give another.") from error
    check_sizes(model)
    return {"model": model}


def _own_parts(node: Any) -> dict[str, Any]:
    """The parts of a model that name a class, for a checkpoint that was trained with it."""
    for part, own in _mapping("model", node).items():
        if f"model/{part}" not in PACKAGES or "_target_" not in _mapping(f"model.{part}", own):
            raise ConfigError(
                f"model.{part} comes from the checkpoint: --config-name sample takes only the "
                "parts of the model whose class is your own, as in +model.bias=mine."
            )
    return {part: _checked_option(f"model.{part}", own) for part, own in node.items()}


def root_of(cfg: DictConfig | Mapping[str, Any]) -> type:
    """The schema that a configuration was composed from: what its command is."""
    found = OmegaConf.get_type(cfg) if isinstance(cfg, DictConfig) else None
    return found if found in (DoctorRoot, InfoRoot, SampleRoot) else Root


def _checked_groups(options: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of a run that take one option each."""
    checked: dict[str, Any] = {"model": _checked_model(options["model"])}
    for group in ("loss", "data", "optim", "schedule"):
        checked[group] = _checked_option(group, options[group])
    trainer, known = _mapping("trainer", options["trainer"]), _trainer_fields()
    for key in trainer:
        if key not in known and (said := use_instead(f"trainer.{key}")):
            raise ConfigError(said)
    checked["trainer"] = check_fields("trainer", known, trainer, owner="trainer")
    return checked


def batch_size(options: Mapping[str, Any]) -> int:
    """Rows of a micro-batch: `data.batch_size`, else what `batch_tokens` comes to at this `seq`."""
    return options["data"].get("batch_size") or max(1, options["batch_tokens"] // options["seq"])


@contextmanager
def _own_hydra(config_dirs: list[Path]) -> Iterator[None]:
    """Hydra's global state set aside, so that composing works inside a Hydra application too."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().hydra = None
    try:
        version.setbase("1.3")
        search_path = create_config_search_path(str(conf_dir()))
        for folder in config_dirs:  # where Hydra's own command line puts --config-dir
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
        redaction.note_joined(cfg)
        raise ConfigError(sentence(error)) from error
    redaction.note_joined(cfg)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if value != MISSING}


def _refuse_targets(node: Any) -> None:
    if isinstance(node, Composed):
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


def _root_fields(schema: type) -> dict[str, Field]:
    hints = get_type_hints(schema, include_extras=True)
    root = {}
    for item in fields(schema):
        default = item.default if item.default_factory is NO_DEFAULT else item.default_factory()
        # an absent group is reported by _mapping, which lists its options
        root[item.name] = Field(hints[item.name], None if default == MISSING else default)
    # OmegaConf knows no Literal
    if not issubclass(schema, Root):
        root["accelerator"] = _trainer_fields()["accelerator"]
    else:
        root["compile"] = Field(bool | Literal["cudagraphs"], False)
        root["matmul"] = Field(Literal["auto", "torch"], "auto")
        root |= fields_of("xftrain.training.nonfinite", "NonFiniteGuard")
    return root


def fields_of_no_option() -> dict[str, dict[str, Field]]:
    """The fields of the root, of `model` and of `trainer`, by dotted key."""
    model = fields_of("xftrain.model", "GPT")
    return {"": _root_fields(Root), "model": model, "trainer": _trainer_fields()}


def _trainer_fields() -> dict[str, Field]:
    return fields_of("xftrain.training.trainer", "build_trainer")


def _checked_model(node: Any) -> dict[str, Any]:
    model = _mapping("model", node)
    parts = [group.partition("/")[2] for group in PACKAGES if group.startswith("model/")]
    scalars = {key: value for key, value in model.items() if key not in (*parts, "layers")}
    checked = check_fields("model", fields_of("xftrain.model", "GPT"), scalars, owner="model")
    checked |= {part: _checked_option(f"model.{part}", model.get(part)) for part in parts}
    return checked | {"layers": checked_layers(model.get("layers"), checked, _checked_option)}


def _checked_option(key: str, node: Any) -> dict[str, Any]:
    node = _mapping(key, node)
    if "_target_" in node:
        if "name" in node:
            raise ConfigError(
                f"{key} has both name and _target_; keep the one that names the class."
            )
        return node
    if "name" not in node:
        raise ConfigError(
            f"{key}.name has no value; it must be one of {', '.join(names(group_of(key)))}."
        )
    return {"name": node["name"], **check(key, node["name"], node)}


def _mapping(key: str, node: Any) -> dict[str, Any]:
    """The node of a group, which is a mapping unless something went wrong."""
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
