"""Turns an error of Hydra or OmegaConf into one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable
from typing import Any, get_type_hints

import yaml
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from xftrain.config.lightning_keys import use_instead
from xftrain.config.moved_keys import moved_key_error
from xftrain.config.overrides import all_groups, as_shown, groups_in
from xftrain.config.registry import GROUPS, conf_dir, group_of, option_names, option_schema
from xftrain.config.values import describe, show, unknown_key

# Options of Hydra's own groups that need an extra of this package, and the name of the extra.
_EXTRAS = {
    "hydra/launcher/joblib": "sweep",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/sweeper/optuna": "optuna",
}


def sentence(error: BaseException, overrides: Iterable[str] = ()) -> str:
    """Describes an error of Hydra or OmegaConf in one sentence."""
    return as_shown(_sentence(error, overrides))


def _sentence(error: BaseException, overrides: Iterable[str]) -> str:
    if isinstance(error, RecursionError):
        return "an override or a configuration file is nested too deeply: use fewer levels."
    if isinstance(error, MemoryError):
        return "the configuration does not fit in memory: use shorter values."
    chained = error.__cause__ or error.__context__
    cause = error if isinstance(error, OmegaConfBaseException) else chained
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        if extra := _EXTRAS.get(error.missing_cfg_file):
            group, _, name = error.missing_cfg_file.rpartition("/")
            return f'{_dotted(group)}={name} needs an extra: pip install ".[{extra}]".'
        return _no_such_file(error.missing_cfg_file, list(error.options or []), text)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'[ \n]", text):
        return f"{_dotted(found[1])} has several values; add -m to run one job for each."
    if found := re.search(r"Could not override '([^']*/[^']*)'", text):
        return _file_prefix(text) + _no_such_group(_dotted(found[1]))
    if found := re.match(r"Multiple values for ([\w/]+)", text):
        return f"{_dotted(found[1])} is chosen twice; choose one option, without + or a list."
    if found := re.search(r"force-add of config groups is not supported: '(.*)'", text):
        return f"{_dotted(found[1])} chooses an option of a group; leave out the ++."
    if re.search("dynamic value space|different distribution kind", text):  # of Optuna
        return (
            "the study in hydra.sweeper.storage was made with other choices: repeat them, or "
            "choose another hydra.sweeper.study_name."
        )
    if text.startswith("Config group override must be"):
        return _numeric_option(overrides) or f"{_single_line(text)}."
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        return _file_prefix(text) + _no_such_key(cause)
    if isinstance(cause, OmegaConfBaseException):
        return _file_prefix(text) + _wrong_value(cause)
    return f"{_single_line(text.partition('Config search path:')[0])}."


def _no_such_file(path: str, options: list[str], text: str) -> str:
    group, _, name = path.rpartition("/")
    if text.startswith("Cannot find primary config"):
        options = sorted(path.stem for path in conf_dir().glob("*.yaml"))
        said = f"--config-name {path}: no such configuration"
    else:
        said = f"{group.replace('/', '.')}={name}: no such option"
        if group in all_groups():  # Hydra lists no options, for example for a list of them
            options = options or [path.stem for path in (conf_dir() / group).glob("*.yaml")]
    if not options:
        return f"{said}; there is no group {group}." if group else f"{said}."
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    nearest = f" (nearest: {near[0]})" if near else ""
    return f"{said}; choose one of {', '.join(sorted(options))}{nearest}."


def _unreadable(override: str) -> str:
    if "=" not in override:
        return f"{override!r} is neither a flag nor of the form key=value."
    key = override.partition("=")[0]
    return (
        f"{override!r} cannot be read; a value that holds special characters needs quotes of its "
        f"own, as in '{key}=\"...\"'."
    )


def _numeric_option(overrides: Iterable[str]) -> str | None:
    """Finds the override that has a number in place of an option, which Hydra does not name."""
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        if group in all_groups() and not isinstance(yaml.safe_load(value), str | list):
            return _no_such_file(f"{group}/{value}", [], "")
    return None


def _no_such_group(key: str) -> str:
    groups = sorted(_dotted(group) for group in groups_in(conf_dir()))
    if key in groups:
        return f"{key} is not part of the configuration that --config-name chose."
    near = difflib.get_close_matches(key, groups, n=1)
    return f"{key} is not a group; " + (
        f"did you mean {near[0]}?" if near else f"choose one of {', '.join(groups)}."
    )


def _no_such_key(cause: OmegaConfBaseException) -> str:
    key = str(cause.full_key)
    parent, node = key.rpartition(".")[0], cause.parent_node
    if said := use_instead(key):
        return said
    if parent == "model.layers":
        return (
            f"model.layers describes no {key.rpartition('.')[2]}: name it in model.layers.pattern, "
            f"and add it, as in +{key}.bias={{name:window,window:16}}."
        )
    siblings = [str(name) for name in node] if isinstance(node, DictConfig) else []
    known = [f"{parent}.{name}" if parent else name for name in siblings]
    is_option = group_of(parent) in GROUPS and "name" in siblings
    owner = f"{parent}={node.name}" if is_option else parent or "the configuration"
    hidden_keys = ("hydra", f"{parent}.name" if is_option else "")
    known = [name for name in known if name not in hidden_keys]
    if is_option and key.rpartition(".")[2] in _keys_of(group_of(parent), str(node.name)):
        return (
            f"{key} is a key of {owner} that the default of {parent} does not have: add it with a "
            f"+ before the override, as in +{key}=..."
        )
    elsewhere = None if moved_key_error(key) else _same_name_elsewhere(key, node)
    if elsewhere is not None:
        return f"{key} is not a key of {owner}; did you mean {elsewhere}?"
    return unknown_key(key, known, owner)


def _keys_of(group: str, name: str) -> Container[str]:
    """The keys of a built-in option; empty for any other name."""
    return option_schema(group, name) if name in option_names(group) else ()


def _same_name_elsewhere(key: str, node: Any) -> str | None:
    """The only key of the same name in another group, if there is one: `optim.lr` for `lr`.

    Args:
        key: the key that does not exist.
        node: its parent in the configuration.
    """
    name = key.rpartition(".")[2]
    found: list[str] = []
    todo = [("", node._get_root() if isinstance(node, DictConfig) else None)]
    while todo:
        place, node = todo.pop()
        for child in map(str, node if isinstance(node, DictConfig) and not node._is_none() else ()):
            full = f"{place}.{child}" if place else child
            if full == "hydra":
                continue
            if child == name:
                found.append(full)
            todo.append((full, node._get_node(child)))
    # of several keys, the one with the fewest groups before it
    found.sort(key=lambda full: (full.count("."), full))
    shallow = [full for full in found if full.count(".") == found[0].count(".")]
    return shallow[0] if len(shallow) == 1 else None


def _wrong_value(cause: OmegaConfBaseException) -> str:
    message = _single_line(str(cause.msg or cause).partition("\n")[0])
    if not cause.full_key:
        return f"{message}."
    schema = cause.object_type  # a class of the schema, or dict or list, which have no hints
    rule = get_type_hints(schema, include_extras=True).get(str(cause.key)) if schema else None
    if rule is None or isinstance(cause, InterpolationResolutionError):
        return f"{cause.full_key}: {message}."
    return f"{cause.full_key} must be {describe(rule)}, got {show(cause.value)}."


def _file_prefix(text: str) -> str:
    """The file that Hydra's message names, if the error is in a file."""
    found = re.match(r"In '[^']*': ", text)
    return found[0] if found else ""


def _dotted(text: str) -> str:
    key, equals, value = text.partition("=")
    return key.replace("/", ".") + equals + value


def _single_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
