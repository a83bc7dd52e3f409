"""The options of every group, found on disk and checked without importing them.

An option is one Python file and one YAML of the same name. Its class is the one whose lower-cased
name is the file's name without underscores, and the keyword-only parameters of its constructor are
its fields: name, annotation and default are read from the source, so that a wrong configuration is
refused before torch is imported.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

from xftrain.config.fields import PositiveInt
from xftrain.config.option_config import OptionConfig
from xftrain.config.own_classes import check_instance, check_own_class
from xftrain.config.signatures import Field, class_value, fields_of, option_class, source_of
from xftrain.config.values import check_fields, show
from xftrain.errors import ConfigError

# The groups with a Python class for each option, in the order in which a run builds them.
GROUPS = (
    *("model/attn", "model/bias", "model/pos", "model/heads", "model/ffn", "model/norm"),
    *("loss", "data", "optim", "schedule", "callbacks", "logger"),
)
_LAYER_PREFIX = re.compile(r"^model\.layers\.[^.]+\.")
ENTRY_GROUPS = ("callbacks", "logger")  # groups that hold several options, each under its own key
# Fields that all options of a group share, which the framework reads and passes by position.
SHARED_FIELDS = {"data": {"batch_size": Field(PositiveInt | None, None)}}


def group_of(key: str) -> str:
    """The config group of a dotted key.

    `model.attn` is in `model/attn`, `model.layers.local.bias` in `model/bias`, and `logger.csv`
    in `logger`.
    """
    group = _LAYER_PREFIX.sub("model.", key).replace(".", "/")
    return group if group in GROUPS else group.partition("/")[0]


def conf_dir() -> Path:
    """The folder of the built-in configurations."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):  # a wheel; a checkout
        if (folder / "train.yaml").is_file():
            return folder
    raise FileNotFoundError(f"conf/train.yaml is neither in {package} nor beside it")


def option_names(group: str) -> list[str]:
    """The sorted names of a group's options: those with a YAML file and a class."""
    files = (conf_dir() / group).glob("*.yaml")
    return sorted(file.stem for file in files if _find(group, file.stem))


@cache
def public_names() -> frozenset[str]:
    """All names in a configuration: of groups, options, fields, and literal values."""
    found = {part for group in GROUPS for part in group.split("/")} | {"name", "cpu", "cuda"}
    found |= {path.stem for path in conf_dir().rglob("*.yaml")}
    for group in GROUPS:
        for name in option_names(group):
            for key, field in option_schema(group, name).items():
                found |= {key, *literals(field.annotation)}
    return frozenset(found)


def literals(annotation: Any) -> set[str]:
    """The strings that the `Literal`s of an annotation allow."""
    if isinstance(annotation, str):
        return {annotation}
    args = get_args(annotation)
    return set().union(*map(literals, args)) if args else set()


def measures_times(name: str | None) -> bool:
    """Whether this callback is a benchmark, whose times other processes would falsify."""
    is_built_in = name is not None and _find("callbacks", name) is not None
    return is_built_in and bool(declared("callbacks", str(name), "measures_times"))


def option_schema(group: str, name: str) -> dict[str, Field]:
    """The fields of an option, by name, those that its whole group shares included."""
    return SHARED_FIELDS.get(group, {}) | fields_of(*_module_and_class(group, name))


def declared(group: str, name: str, attribute: str) -> Any:
    """The value of a constant attribute of an option's class; None if it has no such attribute.

    It is read from the source, so that a configuration is refused before torch is imported.
    """
    return class_value(*_module_and_class(group, name), attribute)


def module_of(group: str, name: str) -> str | None:
    """The full name of an option's module; None if there is no such option."""
    found = _find(group, name)
    return None if found is None else found[0]


def load_class(group: str, name: str) -> type:
    """Imports and returns the class of an option."""
    module, class_name = _module_and_class(group, name)
    loaded: type = getattr(importlib.import_module(module), class_name)
    return loaded


def class_of(option: OptionConfig) -> Any:
    """The class of an option, built-in or the user's own, without building its object.

    It is imported. A user's `_target_` may also be a function that makes the object.
    """
    if option.name is not None:
        return load_class(option.group, option.name)
    from hydra.utils import get_object

    return get_object(str(option.target))


def check_built_in(key: str, name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the node of a built-in option at a dotted key, and fills in the defaults.

    Raises:
        ConfigError: unknown name or key, a wrong type, a value out of range, a missing field.
    """
    known = option_names(group_of(key))
    if name not in known:
        raise ConfigError(
            f"{key}.name must be one of {', '.join(known)}, got {show(name)}{_nearest(name, known)}"
            " (a class of your own is named by _target_ instead)."
        )
    options = {field: value for field, value in node.items() if field != "name"}
    return check_fields(key, option_schema(group_of(key), name), options, owner=f"{key}={name}")


def build(option: OptionConfig, *positional: Any) -> Any:
    """Builds the object of an option; `positional` are the framework's own arguments."""
    return factory(option)(*positional)


def factory(option: OptionConfig) -> Callable[..., Any]:
    """A callable that builds the object of an option, and may be called repeatedly.

    A user's own class is built by Hydra's `instantiate`. Only configurations that the user
    composed may name one, never those of a checkpoint.
    """
    arguments = option.options
    for shared in SHARED_FIELDS.get(option.group, {}):
        arguments.pop(shared, None)
    if option.name is not None:
        return partial(load_class(option.group, option.name), **arguments)
    return partial(_instantiate, option, {"_target_": option.target, **arguments})


def _module_and_class(group: str, name: str) -> tuple[str, str]:
    found = _find(group, name)
    assert found is not None, f"{group} has no file with a class for {name}"
    return found


def packages_of(group: str) -> tuple[str, str]:
    """The packages of a group: conf/a/b/option.yaml is xftrain/a/b/option.py.

    The benchmark has options of its own in `benchmark/<group>`.
    """
    path = group.replace("/", ".")
    return f"xftrain.{path}", f"xftrain.benchmark.{path}"


def _find(group: str, name: str) -> tuple[str, str] | None:
    for package in packages_of(group):
        if class_name := option_class(source_of(f"{package}.{name}")):
            return f"{package}.{name}", class_name
    return None


def _nearest(value: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def check_own_classes(options: Iterable[OptionConfig]) -> None:
    """Checks all of the user's own classes in a configuration, before anything is built.

    Raises:
        ConfigError: the first fault found, as one sentence.
    """
    groups = list(GROUPS)
    for option in sorted(options, key=lambda option: groups.index(option.group)):
        if option.name is None:
            check_own_class(option.group, option.key, option.to_dict())


def _instantiate(option: OptionConfig, node: Mapping[str, Any], *positional: Any) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    check_own_class(option.group, option.key, node)
    try:
        made = instantiate(dict(node), *positional)
    except InstantiationException as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        said = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{option.key} cannot be built: {said}.") from error
    check_instance(option.group, option.key, made)
    return made
