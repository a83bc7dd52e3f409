"""Parses overrides from an untrusted file into plain values, checks them, and rewrites them.

A sweep's folder is untrusted. Its overrides are parsed by Hydra's own grammar and their values are
checked after unescaping. Hydra gets new text that is written from the checked values and verified
to parse to the same values, never the text of the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    OverrideType,
    Quote,
    QuotedString,
    RangeSweep,
    Sweep,
)

from xftrain.config.overrides import HYDRA_GROUPS, all_groups
from xftrain.config.registry import ENTRY_GROUPS, conf_dir
from xftrain.config.root_schema import COMMANDS, Root

MAX_JOBS = 100_000  # largest number of jobs of a sweep
_MAX_CHARACTERS = 20_000  # longest override
MAX_PROCESSES = max(64, os.cpu_count() or 1)  # largest number of parallel jobs
_MAX_OVERRIDES = 1_000  # each takes Hydra's parser some milliseconds
_NAME = r"[A-Za-z]\w*"  # no leading underscore: _target_, _args_ and the like name code
_KEY = re.compile(rf"{_NAME}(?:[./]{_NAME})*", re.ASCII)
_WORD = re.compile(r"\w[\w-]*", re.ASCII)  # an option's name; a path could leave its folder
_GLOB = re.compile(r"[\w*?-]+", re.ASCII)
# Hydra's own keys that may be set; none of them names code, folders or commands.
_HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
_NUMBERS = {  # limits of the numbers of jobs and processes, by key
    "hydra/launcher/n_jobs": (-1, MAX_PROCESSES),
    "hydra/sweeper/n_jobs": (1, MAX_PROCESSES),
    "hydra/sweeper/n_trials": (1, MAX_JOBS),
    "hydra/sweeper/max_trials": (1, MAX_JOBS),
}
_HYDRA_KEYS = re.compile(
    r"hydra\.launcher\.n_jobs"
    r"|hydra\.sweeper\.(n_trials|n_jobs|max_trials|study_name|direction|seed|sampler\.seed)"
)


class NotPlain(ValueError):
    """An override in a file that is more than a plain value of a known key."""


def plain_overrides(config_name: str, recorded: Sequence[str]) -> list[str]:
    """Checks recorded overrides and writes them anew in canonical form.

    Args:
        config_name: the primary config, a file of conf/.
        recorded: the overrides in the file.

    Raises:
        NotPlain: an override could run code, resolve an interpolation or leave the schema.
    """
    _check_extent(recorded)
    root, _ = COMMANDS.get(config_name, (Root, None))
    known = {field.name for field in fields(root)}
    groups = all_groups()
    num_jobs, made = 1.0, []
    for text in recorded:
        override = _parse(text)
        _check_key(override, known, groups)
        _check_value(override, groups)
        num_jobs *= num_values(override)
        made.append(_written(override))
    if num_jobs > MAX_JOBS:
        raise NotPlain(f"{num_jobs:,.0f} jobs")
    return made


def same_overrides(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists of overrides are equal regardless of the quoting of their values."""
    if len(first) != len(second):
        return False
    pairs = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    try:
        _check_extent([text for text, _ in pairs])  # they may be of an untrusted result
        return all(_meaning(_parse(one)) == _meaning(_parse(other)) for one, other in pairs)
    except NotPlain:
        return False


def _check_extent(recorded: Sequence[str]) -> None:
    """Refuses overrides that Hydra would parse for minutes, at 0.4 ms for a character."""
    if len(recorded) > _MAX_OVERRIDES:
        raise NotPlain(f"{len(recorded):,} overrides")
    if (num_characters := sum(map(len, recorded))) > _MAX_CHARACTERS:
        raise NotPlain(f"overrides of {num_characters:,} characters")


def num_values(override: Override) -> float:
    """The number of values that an override sweeps; 1 for a single value or a distribution."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return max(len(value.list), 1)
    if not isinstance(value, RangeSweep):
        return 1
    bounds = [float(bound) for bound in (value.start or 0, value.stop or 0, value.step)]
    if not all(map(math.isfinite, bounds)) or not value.step:
        return math.inf
    return max(math.ceil((bounds[1] - bounds[0]) / bounds[2]), 1)


def _parse(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except Exception as error:  # Hydra's parser may raise anything, also RecursionError
        raise NotPlain("an override that cannot be read") from error


def _meaning(override: Override) -> tuple[Any, ...]:
    """A key by which overrides are compared; it has types, since 1 equals true and 1.0."""
    value, tags = override.value(), []
    if isinstance(value, Sweep):
        value, tags = replace(value, tags=set()), sorted(value.tags)
    return override.get_key_element(), override.value_type, repr(value), tags


def _check_key(override: Override, known: set[str], groups: set[str]) -> None:
    key = override.key_or_group
    if override.package is not None or not _KEY.fullmatch(key):
        raise NotPlain(f"the key {key!r}")
    slashed, dotted = key.replace(".", "/"), key.replace("/", ".")
    if slashed.partition("/")[0] == "hydra":
        if slashed not in _HYDRA_GROUPS and not _HYDRA_KEYS.fullmatch(dotted):
            raise NotPlain(f"the key {key!r}")
    elif slashed not in groups and dotted.partition(".")[0] not in known:
        raise NotPlain(f"the key {key!r}, which is unknown")


def _check_value(override: Override, groups: set[str]) -> None:
    value, group = override.value(), override.key_or_group.replace(".", "/")
    least, most = _NUMBERS.get(group, (None, 0))
    if least is not None and not (type(value) is int and least <= value <= most):
        raise NotPlain(f"{override.key_or_group}={value}, which is at most {most:,}")
    strings = list(_strings(value))
    joined = "".join(strings)
    # `${` makes an interpolation, however it is escaped or assembled later
    if "$" in joined and "{" in joined:
        raise NotPlain(f"an interpolation in {override.key_or_group}")
    if group.partition("/")[0] == "hydra" and (
        isinstance(value, Sweep | Glob | list | dict)
        or any(not _WORD.fullmatch(s) for s in strings)
    ):
        raise NotPlain(f"a value of {override.key_or_group}")
    if group not in groups or isinstance(value, dict) or value is None:
        return
    if isinstance(value, Glob):
        return
    words: list[Any] = [value]
    if isinstance(value, ChoiceSweep):
        words = list(value.list)
    for word in words:
        choices = word if isinstance(word, list) and group in ENTRY_GROUPS else [word]
        for choice in choices:
            if choice is not None and not _is_option(group, _plain(choice)):
                raise NotPlain(f"an option of {override.key_or_group} that does not exist")


def _is_option(group: str, word: Any) -> bool:
    if not isinstance(word, str) or not _WORD.fullmatch(word):
        return False
    # Hydra's own options come with it and its plug-ins
    return group in HYDRA_GROUPS or (conf_dir() / group / f"{word}.yaml").is_file()


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _strings(value: Any) -> Iterator[str]:
    """Yields all strings in a value or a sweep over values.

    Raises:
        NotPlain: the value holds something other than plain values.
    """
    if isinstance(value, Glob):
        if not all(map(_GLOB.fullmatch, [*value.include, *value.exclude])):
            raise NotPlain("a glob of paths")
    elif isinstance(value, Sweep):
        if not all(map(_WORD.fullmatch, value.tags)):
            raise NotPlain("tags that are not plain words")
        yield from _plain_strings(value.list if isinstance(value, ChoiceSweep) else [])
    else:
        yield from _plain_strings(value)


def _plain_strings(value: Any) -> Iterator[str]:
    """Yields all strings in a value, the keys of mappings included."""
    value = _plain(value)
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for child in value:
            yield from _plain_strings(child)
    elif isinstance(value, dict):
        for name, child in value.items():
            if not isinstance(name, str) or not re.fullmatch(_NAME, name, re.ASCII):
                raise NotPlain(f"a mapping with the key {name!r}")
            yield name
            yield from _plain_strings(child)
    elif value is not None and not isinstance(value, bool | int | float):
        raise NotPlain("a value of another kind")


def _written(override: Override) -> str:
    """Writes the override in canonical form.

    Raises:
        NotPlain: Hydra would parse the text to another value.
    """
    key = override.get_key_element()
    is_deleted = override.type == OverrideType.DEL and override.value_type is None
    text = key if is_deleted else f"{key}={_value_written(override._value)}"
    if _meaning(_parse(text)) != _meaning(override):
        raise NotPlain(f"a value of {key} that cannot be written")
    return text


def _value_written(value: Any) -> str:
    if isinstance(value, Glob):
        return f"glob([{','.join(value.include)}],exclude=[{','.join(value.exclude)}])"
    if isinstance(value, ChoiceSweep):
        is_function = value.shuffle or not value.simple_form
        made = ",".join(map(_argument if is_function else _element, value.list))
        made = made if value.simple_form else f"choice({made})"
    elif isinstance(value, RangeSweep):
        made = f"range({value.start},{value.stop},{value.step})"
    elif isinstance(value, IntervalSweep):
        made = f"interval({value.start},{value.end})"
    else:
        return _element(value)
    if isinstance(value, ChoiceSweep | RangeSweep) and value.shuffle:
        made = f"shuffle({made})"
    return f"tag({','.join(sorted(value.tags))},{made})" if value.tags else made


def _element(value: Any) -> str:
    """Writes an element of a sweep as Hydra does for a job, so that the job's name is unchanged."""
    return Override._get_value_element_as_str(value)


def _argument(value: Any) -> str:
    """Writes a function's argument; functions drop quotes, but `choice("1")` is not the number."""
    is_text = isinstance(value, str)
    return _element(QuotedString(value, Quote.double) if is_text else value)
