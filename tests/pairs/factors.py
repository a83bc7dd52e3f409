"""The factors of the covering array, read from the schema on disk: every group, key and field.

A factor is one choice and its levels are the values it can take. A group is a factor, and so is
each field of each option, each root key and each key of `model` and `trainer`; an entry of
`callbacks` or `logger` is one that is on or off. A field of an option has levels only where that
option is chosen. A new option or field becomes a factor without any change here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt

from tests.pairs.values import NOT_A_FACTOR, VALUES
from xftrain.config import registry
from xftrain.config.run_config import GPTConfig, RunConfig, TrainerConfig
from xftrain.config.schema import schema_of
from xftrain.config.signatures import REQUIRED, Field

OWN_OPTIONS = Path(__file__).parent / "conf"  # options as a user brings them, with --config-dir

Level = tuple[str, str]  # of a factor's name and the value as typed
Row = dict[str, str]  # factor to value; a field of an option that is not chosen is absent


@dataclass(frozen=True)
class Factor:
    """One choice.

    Attributes:
        name: the key as typed; of a field of an option `model.bias[window].window`.
        levels: the values as typed, the default first.
        key: what is typed before the equals sign.
        parent: the level without which this factor has no value.
    """

    name: str
    levels: tuple[str, ...]
    key: str
    parent: Level | None = None
    is_group: bool = False


def all_factors() -> list[Factor]:
    """Every factor, parents before their children."""
    return [*_groups(), *_root_keys(), *_model_and_trainer_keys(), *_entries()]


def default_row(factors: list[Factor]) -> Row:
    """The first level of every factor that has a value then."""
    return completed({}, factors)


def completed(chosen: Row, factors: list[Factor]) -> Row:
    """These levels, and of every other factor the first; fields of options not chosen go."""
    row: Row = {}
    for factor in factors:
        if factor.parent is None or row.get(factor.parent[0]) == factor.parent[1]:
            row[factor.name] = chosen.get(factor.name, factor.levels[0])
    return row


def overrides_of(row: Row, factors: list[Factor]) -> list[str]:
    """The row as a command line."""
    typed, entries = [], {}
    for factor in factors:
        value = row.get(factor.name)
        if value is None or (factor.is_group and value == "null"):
            continue
        group, _, entry = factor.key.partition(".")
        if group in registry.ENTRY_GROUPS and entry:
            entry, _, field = entry.partition(".")
            if field:
                entries[group, entry][field] = value
            elif value == "on":
                entries[group, entry] = {"name": entry}
            else:
                typed.append(f"++{factor.key}=null")
        else:
            typed.append(f"{factor.key}={value}")
    for (group, entry), fields in entries.items():
        listed = ",".join(f"{field}:{value}" for field, value in fields.items())
        typed.append(f"++{group}.{entry}={{{listed}}}")
    return typed


def values_of(name: str, annotation: Any, default: Any) -> tuple[str, ...]:
    """The levels of a field: from the table, else the default and what its type tells."""
    if name in VALUES:
        return tuple(map(as_typed, VALUES[name]))
    if isinstance(default, str) and _is_number(annotation):
        default = float(default)  # YAML 1.1 reads 1e-5 as a word
    first = [] if default is REQUIRED else [default]
    found = dict.fromkeys(map(as_typed, [*first, *_telling(annotation, default)]))
    assert found, f"{name} has no value that its type tells: add it to tests/pairs/values.py"
    return tuple(found)


def as_typed(value: Any) -> str:
    """A value as it stands on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value).replace('"', "").replace(" ", "")


def _groups() -> Iterator[Factor]:
    conf = registry.conf_dir()
    folders = sorted({path.parent for path in conf.rglob("*.yaml")} - {conf})
    for folder in folders:
        group = folder.relative_to(conf).as_posix()
        if group.partition("/")[0] in NOT_A_FACTOR:
            continue
        options = sorted(path.stem for path in folder.glob("*.yaml"))
        if group == "callbacks":  # a sweep of the benchmark measures in processes of its own
            options = [option for option in options if not _measures(folder / f"{option}.yaml")]
        options = [option for option in options if not _needs_package(group, option)]
        first = _chosen_by_default(group)
        own = sorted(path.stem for path in (OWN_OPTIONS / group).glob("*.yaml"))
        levels = dict.fromkeys([first, *options, *own])
        yield Factor(group, tuple(levels), group, is_group=True)
        if group in registry.GROUPS and group not in registry.ENTRY_GROUPS:
            for option in options:
                yield from _fields_of_option(group, option)


def _fields_of_option(group: str, option: str) -> Iterator[Factor]:
    if option not in registry.option_names(group):
        return
    written = _written(group, option)
    key = group.replace("/", ".")
    for field, (annotation, default) in registry.option_schema(group, option).items():
        name = f"{key}[{option}].{field}"
        levels = values_of(name, annotation, written.get(field, default))
        yield Factor(name, levels, f"{key}.{field}", (group, option))


def _root_keys() -> Iterator[Factor]:
    groups = {path.name for path in registry.conf_dir().iterdir() if path.is_dir()}
    written = _written("", "train")
    for key, (annotation, default) in schema_of(RunConfig).items():
        if key not in groups:
            yield Factor(key, values_of(key, annotation, written.get(key, default)), key)


def _model_and_trainer_keys() -> Iterator[Factor]:
    keys: dict[str, tuple[Mapping[str, Field], dict[str, Any]]] = {
        "model": (schema_of(GPTConfig), _written("model", "gpt_tiny")),
        "trainer": (schema_of(TrainerConfig), _written("trainer", "auto")),
    }
    for group, (fields, written) in keys.items():
        for field, (annotation, default) in fields.items():
            name = f"{group}.{field}"
            yield Factor(name, values_of(name, annotation, written.get(field, default)), name)


def _entries() -> Iterator[Factor]:
    for group in registry.ENTRY_GROUPS:
        for option in registry.option_names(group):
            if registry.measures_times(option) or _needs_package(group, option):
                continue
            name = f"{group}.{option}"
            yield Factor(name, ("on", "off"), name)
            written = _written(group, option).get(option) or {}
            for field, (annotation, default) in registry.option_schema(group, option).items():
                key = f"{name}.{field}"
                levels = values_of(key, annotation, written.get(field, default))
                yield Factor(key, levels, key, (name, "on"))


def _needs_package(group: str, option: str) -> bool:
    """Whether it is a logger that sends what it records elsewhere, by an extra."""
    is_option = group == "logger" and option in registry.option_names(group)
    return is_option and bool(registry.declared(group, option, "needs_package"))


def _written(group: str, option: str) -> dict[str, Any]:
    """What the YAML of an option sets."""
    path = registry.conf_dir() / group / f"{option}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def _measures(path: Path) -> bool:
    written = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    listed = [item for item in written.get("defaults", []) if isinstance(item, str)]
    return any(map(registry.measures_times, [path.stem, *listed]))


def _chosen_by_default(group: str) -> str:
    """The option that `train.yaml`, or `gpt_tiny.yaml` for a part of the model, chooses."""
    file = ("model", "gpt_tiny") if group.startswith("model/") else ("", "train")
    for item in _written(*file)["defaults"]:
        if isinstance(item, dict) and group.rpartition("/")[2] in item:
            return str(item[group.rpartition("/")[2]] or "null")
    raise AssertionError(f"nothing chooses an option of {group} by default")


def _is_number(annotation: Any) -> bool:
    return annotation in (int, float) or (
        get_origin(annotation) is Annotated and get_args(annotation)[0] in (int, float)
    )


def _telling(annotation: Any, default: Any) -> list[Any]:
    """Values that a type tells: all of a closed set; of a range its closed ends."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return [value for arg in args for value in _telling(arg, default)]
    if origin is Literal:
        return list(args)
    if annotation is bool:
        return [False, True]
    if annotation in (None, NoneType):
        return [None]
    if origin is Annotated:
        low = next((rule for rule in args[1:] if isinstance(rule, Ge | Gt)), None)
        high = next((rule for rule in args[1:] if isinstance(rule, Le | Lt)), None)
        closed = [rule.ge for rule in [low] if isinstance(rule, Ge)]
        closed += [rule.le for rule in [high] if isinstance(rule, Le)]
        number = type(default) in (int, float)
        beside = [default * 2] if number and default and not isinstance(high, Le | Lt) else []
        return closed + (beside if len(closed) < 1 else [])
    if annotation in (int, float) and type(default) in (int, float):
        return [default * 2]
    return []
