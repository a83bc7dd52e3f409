"""Adds to Hydra's `--help` a description of each option and the allowed values of each key."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from xftrain.config.registry import (
    GROUPS,
    conf_dir,
    literals,
    module_of,
    option_schema,
    packages_of,
)
from xftrain.config.signatures import Field, source_of
from xftrain.config.values import describe
from xftrain.utils.printable import one_line

_GROUP = re.compile(r"([\w/]+): (.+)").fullmatch
_KEY = re.compile(r"( *)([\w]+):( .*)?").fullmatch
_WIDTH = 100
_NOTES = {  # on keys whose values have a spelling of their own
    "model.layers.pattern": "names, as [near,far] with +model.layers.near.bias=window and so on",
}
_CONFIGURATION = "Configuration."  # the start of the template's second part


@contextlib.contextmanager
def detailed_help(fields: Callable[[], Mapping[str, Mapping[str, Field]]]) -> Iterator[None]:
    """Patches Hydra's `--help` to describe options and allowed values.

    Args:
        fields: returns the fields that belong to no option (root, `model`, `trainer`), by dotted
            key.
    """
    if not {"--help", "-h"} & set(sys.argv[1:]):
        yield
        return
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        sys.stdout.write(with_details(answer.getvalue(), fields()))


def with_details(text: str, fields: Mapping[str, Mapping[str, Field]]) -> str:
    """Adds a line for each option, and the allowed values beside each value, to Hydra's help."""
    groups, heading, values = text.partition(_CONFIGURATION)
    listed = [line for whole in groups.split("\n") for line in _options(whole)]
    return "\n".join(listed) + heading + "\n".join(_values(values.split("\n"), fields))


def _options(line: str) -> list[str]:
    """The line of a group, followed by a line for each of its options."""
    found = _GROUP(line)
    if found is None or not (conf_dir() / found[1]).is_dir():
        return [line]
    names = found[2].split(", ")
    width = max(map(len, names)) + 2
    return [
        f"{found[1]}:",
        *(_cut(f"  {name:{width}}{_summary(found[1], name)}") for name in names),
    ]


def _summary(group: str, name: str) -> str:
    """The first line of an option's docstring or, without a Python file, of its YAML's comment."""
    for package in packages_of(group):
        source = source_of(f"{package}.{name}")
        if source.is_file():  # read as text: parsing all files would double the time of --help
            first = source.read_text(encoding="utf-8").partition("\n")[0]
            return one_line(first.strip('"'))
    path = conf_dir() / group / f"{name}.yaml"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    comments = [line[2:] for line in lines[:3] if re.match(r"# (?!@)", line)]
    return one_line(comments[0]) if comments else ""


def _values(lines: list[str], fields: Mapping[str, Mapping[str, Field]]) -> Iterator[str]:
    places: list[tuple[int, str]] = []  # (indentation, name) of the groups that hold a line
    options: dict[str, Mapping[str, Field]] = dict(fields)
    for line in lines:
        found = _KEY(line)
        if found is None:
            yield line
            continue
        depth, key, value = len(found[1]), found[2], (found[3] or "").strip()
        while places and places[-1][0] >= depth:
            places.pop()
        group = ".".join(name for _, name in places)
        if not value:
            places.append((depth, key))
        if key == "name" and group:
            options[group] = _fields_of_option(group, value)
        field = options.get(group, {}).get(key)
        allowed = _allowed(field.annotation) if field is not None and value else ""
        allowed = _NOTES.get(f"{group}.{key}", allowed)
        yield _cut(f"{line}  # {allowed}") if allowed else line


def _fields_of_option(group: str, name: str) -> Mapping[str, Field]:
    path = group.replace(".", "/")
    family = path if path in GROUPS else path.partition("/")[0]
    return option_schema(family, name) if family in GROUPS and module_of(family, name) else {}


def _allowed(annotation: Any) -> str:
    """Describes the allowed values; empty if the default already shows them."""
    is_choice = bool(literals(annotation))
    return describe(annotation) if is_choice or "Annotated" in repr(annotation) else ""


def _cut(line: str) -> str:
    return line.rstrip() if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"
