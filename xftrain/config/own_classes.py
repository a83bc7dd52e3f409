"""Checks a user's own classes before training, as the built-in options are checked.

A configuration composed on the command line may name a class by `_target_`. The keys of its node
are compared with the constructor's signature, and the class with the interface of its group.
"""

from __future__ import annotations

import inspect
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from xftrain.config.signatures import REQUIRED, Field
from xftrain.config.values import AttributeRule, check_attribute, check_fields
from xftrain.errors import ConfigError, first_line


class Contract(NamedTuple):
    """The interface that a class must have in its group.

    Attributes:
        positional: names of the constructor's positional arguments; see `docs/extending.md`.
        methods: names of required methods.
        attributes: required instance attributes, with the rule of each.
        base: full name of the required base class, or None.
        method_arguments: expected arguments of methods whose signature has changed since an earlier
            version.
    """

    positional: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeRule] = {}
    base: str | None = None
    method_arguments: Mapping[str, tuple[str, ...]] = {}


_SAVED = ("saved_optimizer", "saved_lr_scheduler", "optimizer", "lr_scheduler")
_LAYER = ("dim", "linear_bias")
CONTRACTS = {
    "model/attn": Contract(
        methods=("reasons", "handle_for", "__call__", "kernel_for"),
        base="xftrain.interfaces.Backend",
    ),
    "model/bias": Contract(methods=("build",)),
    "model/pos": Contract(
        ("dim", "head_dim"),
        ("embed", "prepare", "apply_to"),
        {"max_positions": "an integer >= 1, or None"},
    ),
    "model/heads": Contract(
        ("dim", "num_heads", "linear_bias"),
        ("forward",),
        {"num_kv_heads": "an integer >= 1"},
        "torch.nn.Module",
    ),
    "model/ffn": Contract(_LAYER, ("forward",), base="torch.nn.Module"),
    "model/norm": Contract(_LAYER, ("forward",), base="torch.nn.Module"),
    "loss": Contract(methods=("unsupported", "__call__")),
    "data": Contract(
        ("seq", "batch_size", "seed", "world_size"),
        ("batch", "decode", "num_label_bytes", "baseline"),
        {
            "vocab_size": "an integer >= 1",
            "num_val_batches": "an integer >= 1",
            "stop_at_accuracy": "a number, or None",
        },
    ),
    "optim": Contract(
        methods=("build", "update_saved"),
        method_arguments={"build": ("model", "schedule", "max_steps"), "update_saved": _SAVED},
    ),
    "schedule": Contract(methods=("factor",), method_arguments={"factor": ("step", "max_steps")}),
    "callbacks": Contract(base="lightning.pytorch.Callback"),
    "logger": Contract(base="lightning.pytorch.loggers.Logger"),
}
# Lightning callbacks that cannot work here, and the end of the sentence that refuses each.
_UNSUPPORTED_CALLBACKS = {
    "BatchSizeFinder": "batches are a function of the step; set batch_tokens by the memory that "
    "the log predicts",
    "BackboneFinetuning": "a run has no epochs; no choice is needed where nothing is frozen",
    "LearningRateFinder": "it would train with the run's own optimizer and data; compare learning "
    "rates with -m optim.lr=3e-4,1e-3,3e-3 or hparams_search=optuna",
    "RichProgressBar": "the bar is an option of its own; use callbacks.progress.style=rich",
    "StochasticWeightAveraging": "it counts epochs, and a run has none; use "
    "lightning.pytorch.callbacks.EMAWeightAveraging",
    "TQDMProgressBar": "the bar is an option of its own; use callbacks.progress.style=rich",
}
_FRAMEWORK_KEYS = {"data": ("batch_size",)}  # keys that the framework removes from a node
# Hydra's own keys in a node with _target_.
_HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


def check_own_class(group: str, key: str, node: Mapping[str, Any]) -> None:
    """Checks the class at a dotted key: that it can be imported, its arguments, its interface.

    Raises:
        ConfigError: names the first fault.
    """
    contract, target = CONTRACTS[group], str(node["_target_"])
    made = _imported(key, target)
    _refuse_unsupported_callback(key, made)
    if "_args_" not in node and not node.get("_partial_"):
        values = {name: value for name, value in node.items() if name not in _HYDRA_KEYS}
        for name in _FRAMEWORK_KEYS.get(group, ()):
            values.pop(name, None)
        _check_arguments(key, target, made, contract.positional, values)
    for name, value in node.items():
        if isinstance(value, Mapping) and "_target_" in value:  # Hydra instantiates it as well
            _check_nested(f"{key}.{name}", value)
    if isinstance(made, type):
        _check_class(group, key, target, made)


def _refuse_unsupported_callback(key: str, made: Any) -> None:
    for name, why in _UNSUPPORTED_CALLBACKS.items():
        if isinstance(made, type) and _derives(made, f"lightning.pytorch.callbacks.{name}"):
            raise ConfigError(f"{key}: {name} does not work here, as {why}.")


def check_instance(group: str, key: str, made: Any) -> None:
    """Checks that an instance of a user's own class has the interface of its group.

    Raises:
        ConfigError: names what the instance lacks.
    """
    contract = CONTRACTS[group]
    wanted = (*contract.methods, *contract.attributes)
    if missing := [name for name in wanted if not hasattr(made, name)]:
        raise _lacking(group, key, type(made).__qualname__, missing)
    if contract.base and not _derives(type(made), contract.base):
        raise ConfigError(f"{key} must be a {contract.base}, got {type(made).__qualname__}.")
    for name, rule in contract.attributes.items():
        check_attribute(f"{key}: {type(made).__qualname__}.{name}", rule, getattr(made, name))


def _imported(key: str, target: str) -> Any:
    from hydra.utils import get_object

    try:
        return get_object(target)
    except Exception as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # type: ignore[assignment]
        where = ""
        frames = traceback.extract_tb(cause.__traceback__)
        own = [f for f in frames if "/importlib/" not in f.filename and "<frozen" not in f.filename]
        if own and "/hydra/" not in own[-1].filename and not isinstance(cause, SyntaxError):
            where = f", {own[-1].filename} line {own[-1].lineno}"
        raise ConfigError(
            f"{key}._target_={target} cannot be imported ({first_line(cause)}{where}): its module "
            "must be in the working folder, in PYTHONPATH or installed."
        ) from error


def _check_nested(key: str, node: Mapping[str, Any]) -> None:
    made = _imported(key, str(node["_target_"]))
    if "_args_" not in node and not node.get("_partial_"):
        values = {name: value for name, value in node.items() if name not in _HYDRA_KEYS}
        _check_arguments(key, str(node["_target_"]), made, (), values)


def _check_arguments(
    key: str,
    target: str,
    made: Callable[..., Any],
    positional: tuple[str, ...],
    values: Mapping[str, Any],
) -> None:
    """Compares the keys of a node with a signature, and their values with its annotations."""
    try:
        parameters = list(inspect.signature(made).parameters.values())
    except (TypeError, ValueError):  # of a class in C
        return
    kinds = inspect.Parameter
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any_position = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
    if len(by_position) < len(positional) and not takes_any_position:
        raise ConfigError(
            f"{key}._target_={target} must take the positional arguments {', '.join(positional)}, "
            f"and it takes {len(by_position)}: docs/extending.md lists the arguments of each group."
        )
    given = by_position[: len(positional)]
    for name in (parameter.name for parameter in given):
        if name in values:
            raise ConfigError(
                f"{key}.{name} must not be set: xftrain passes it to {target} by position."
            )
    hints = _hints(made)
    fields, checked = {}, {}
    takes_any_key = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
    for parameter in parameters:
        if parameter in given or parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            continue
        name, is_required = parameter.name, parameter.default is kinds.empty
        if is_required and parameter.kind is kinds.POSITIONAL_ONLY:
            continue
        annotation = hints.get(name, Any)
        if not is_required and name in values and values[name] == parameter.default:
            annotation = Any  # for example a default of None with the annotation `int`
        fields[name] = Field(annotation, REQUIRED if is_required else parameter.default)
    for name, value in values.items():
        if name in fields or not takes_any_key:
            checked[name] = value
    loose = {
        name: Field(Any, field.default)
        for name, field in fields.items()
        if name in checked and (_is_instantiated(checked[name]) or not _is_plain(field.annotation))
    }
    check_fields(key, fields | loose, checked, owner=f"{key}, which is {target}")


def _hints(made: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of all parameters; empty if they cannot be evaluated."""
    function = made.__init__ if isinstance(made, type) else made  # type: ignore[misc]
    try:
        return get_type_hints(function, include_extras=True)
    except Exception:  # evaluating an annotation may raise anything
        return {}


def _is_plain(annotation: Any) -> bool:
    """Whether an annotation consists of types that YAML has."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _is_plain(args[0])
    if origin is Literal:
        return True
    if origin in (Union, types.UnionType, list, dict):
        return all(map(_is_plain, args))
    if origin is tuple:
        return all(arg is ... or _is_plain(arg) for arg in args)
    return annotation in (bool, int, float, str, list, dict, None, type(None))


def _is_instantiated(value: Any) -> bool:
    """Whether Hydra instantiates a class in this value."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_is_instantiated, value.values()))
    return isinstance(value, list | tuple) and any(map(_is_instantiated, value))


def _check_class(group: str, key: str, target: str, made: type) -> None:
    contract = CONTRACTS[group]
    if contract.base and not _derives(made, contract.base):
        raise ConfigError(f"{key}._target_={target} must derive from {contract.base}.")
    found = {name: value for base in reversed(made.__mro__) for name, value in vars(base).items()}
    delegates = "__getattr__" in found and not _derives(made, "torch.nn.Module")
    missing = [] if delegates else [name for name in contract.methods if name not in found]
    missing += sorted(getattr(made, "__abstractmethods__", ()))
    if getattr(found.get("forward"), "__name__", "") == "_forward_unimplemented":
        missing += ["forward"] if "forward" in contract.methods else []
    if missing:
        raise _lacking(group, key, target, list(dict.fromkeys(missing)))
    for name, arguments in contract.method_arguments.items():
        if inspect.isfunction(method := found.get(name)) and not _takes(method, arguments):
            raise ConfigError(
                f"{key}: {target}.{name} is called with {', '.join(arguments)}, and takes other "
                "arguments: docs/extending.md says what they are."
            )


def _takes(method: Callable[..., Any], arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(method).bind("self", *arguments)
    except TypeError:
        return False
    return True


def _derives(made: type, base: str) -> bool:
    """Whether a class has this base; its module is loaded if it does, and need not be otherwise."""
    module, _, name = base.rpartition(".")
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and kind in made.__mro__


def _lacking(group: str, key: str, what: str, missing: list[str]) -> ConfigError:
    return ConfigError(
        f"{key}: {what} has no {' and no '.join(missing)}, which every class of the group "
        f"{group.replace('/', '.')} needs: add it as docs/extending.md describes."
    )
