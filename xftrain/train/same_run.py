"""Checks that a checkpoint fits the run that resumes it: the same model, data and seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from torch import Tensor

from xftrain.config.former_model import completed_model
from xftrain.config.registry import option_names, option_schema
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line, shortened

# `initial_weights` compares the last two
_RESUME_KEYS = ("ckpt", "ckpt_allow", "init_from", "init_weights")
# Keys and groups of keys that a resumed run must not change; and exceptions, which change only how
# the run is computed or observed.
_DECISIVE = (
    "seed",
    "seq",
    "batch_tokens",
    "data",
    "model",
    "trainer.accumulate_grad_batches",
    "trainer.devices",
    "trainer.overfit_batches",
)
_HARMLESS = (
    "data.cache_dir",
    "data.num_val_batches",
    "data.num_workers",
    "data.stop_at_accuracy",
    "model.activation_budget",
    "model.activation_checkpointing",
    "model.attn",
    "model.bias.impl",
    "model.ffn.impl",
)
_IMPL_OF_LAYER = re.compile(r"model\.layers\..+\.(bias|ffn)\.impl")
_PLACE = re.compile(r"data\.(?:(?:sources\..+\.)?(?:val_)?path|tokenizer)")  # of content
_VARIABLE = re.compile(r"\$\{oc\.env:([^{}]+)\}")
_MAX_SHOWN = 200  # characters of a value in a message


def refuse_other_model(saved: Mapping[str, Tensor], current: Mapping[str, Tensor]) -> None:
    """Compares the names, shapes and dtypes of two state dicts; float dtypes may differ.

    Raises:
        ConfigError: the state dicts are not of the same model.
    """
    state_dicts = (saved, current)
    shapes = [{name: _shape(value) for name, value in one.items()} for one in state_dicts]
    differ = [n for n in {**saved, **current} if shapes[0].get(n) != shapes[1].get(n)]
    if differ:
        there, here = (named.get(differ[0], "absent") for named in shapes)
        name = one_line(differ[0])[:_MAX_SHOWN]
        raise ConfigError(
            f"ckpt holds another model: {len(differ)} of its tensors differ from this one's, first "
            f"{name}, {there} there and {here} here; set model as in its run's config.yaml."
        )


def _shape(value: Tensor) -> str:
    shape = str(list(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"


def refuse_other_optimizer(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compares the optimizers and their parameter groups, since a state fits only its own.

    Raises:
        ConfigError: they differ; the message names both.
    """
    there, here = (config["optim"].get("name") for config in (saved, current))
    if there is not None and here is not None and there != here:
        raise ConfigError(
            f"ckpt holds the state of optim={there}, which optim={here} cannot resume: set "
            f"optim={there}."
        )
    is_same_option = there == here
    there, here = (_others_of(config["optim"]) for config in (saved, current))
    if is_same_option and there != here:
        raise ConfigError(
            f"ckpt holds the state of optim.others={there}, which optim.others={here} cannot "
            f"resume: set optim.others={there}."
        )
    there, here = (_group_structure(config["optim"]) for config in (saved, current))
    if there != here:
        raise ConfigError(
            f"ckpt holds the state of an optimizer with optim.param_groups={_shown(there)}, and "
            f"this run has {_shown(here)}: set match and optimizer of each as in ckpt, since a "
            "state belongs to its group; lr and weight_decay may change."
        )


def _group_structure(optim: Mapping[str, Any]) -> list[Any]:
    """The settings that determine the parameters of each group and their optimizer."""
    entries, groups = optim.get("param_groups") or (), []
    for entry in entries if isinstance(entries, list | tuple) else ():
        entry = entry if isinstance(entry, Mapping) else {}
        node = entry.get("optimizer")
        names = {"optimizer": _name_of(node), "others": _others_of(node)}
        known = {key: name for key, name in names.items() if name is not None}
        groups.append({"match": entry.get("match")} | known)
    return groups


def _others_of(node: Any) -> Any:
    """The name of the `others` of a built-in optimizer, which may be their default; or None.

    In a user's own class, `others` may have another meaning.
    """
    name = _name_of(node)
    if name not in option_names("optim"):
        return None
    field = option_schema("optim", name).get("others")
    given = node.get("others") if isinstance(node, Mapping) else None
    return _name_of(given or (field and field.default))


def _name_of(node: Any) -> Any:
    """The name, or the user's own class, of an optimizer given by name or as a node."""
    return node.get("name", node.get("_target_")) if isinstance(node, Mapping) else node


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose values differ, as `optim.lr 0.003 -> 1e-05`, without those about resuming."""
    before, after = (flat(config) for config in (saved, current))
    return {
        key: f"{one_line(key)} {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _RESUME_KEYS
    }


def _shown(value: Any) -> str:
    return shortened(repr(value), _MAX_SHOWN)


def refuse_other_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, moved: bool = False
) -> None:
    """Compares the keys of two configurations that affect the batches or the training.

    Args:
        saved: configuration of the checkpoint.
        current: configuration of the resumed run; its `ckpt_allow` names keys or groups of keys
            that may differ.
        moved: whether the data is known to have the same content, so that its paths may differ.

    Raises:
        ConfigError: keys differ; the message names them and how to allow them.
    """
    if isinstance(model := saved.get("model"), Mapping):
        saved = {**saved, "model": completed_model(model)}
    allowed, known, there = current["ckpt_allow"], flat(current), flat(saved)
    for name in allowed:  # a class may be removed from the configuration, or be added to it
        if not any(_is_in(key, (name,)) for key in known.keys() | there.keys()):
            raise ConfigError(
                f"ckpt_allow names {name!r}, which is a key neither of this configuration nor of "
                "that of ckpt."
            )
    own = {key for key in {**there, **known} if key.endswith("._target_")}
    differing = [
        (key, text)
        for key, text in differences(saved, current).items()
        if _must_not_change(key, there, known, own)
        and not _is_in(key, allowed)
        and not (moved and _PLACE.fullmatch(key))
    ]
    if differing:
        keys = ",".join(key for key, _ in differing)
        raise ConfigError(
            f"ckpt is of a run with another configuration: {', '.join(t for _, t in differing)}; "
            f"set them as in ckpt, or allow them to change with ckpt_allow=[{keys}]."
        )


def _must_not_change(
    key: str, there: Mapping[str, Any], here: Mapping[str, Any], own: Set[str]
) -> bool:
    """Whether a resumed run must not change a key, or add or remove it.

    Args:
        key: dotted key.
        there: values of the checkpoint's configuration, by dotted keys.
        here: values of this run's configuration, by dotted keys.
        own: keys of either configuration that name a user's class.
    """
    if key.endswith("_target_"):  # a user's class
        return True
    if key.startswith("model.layers."):  # absent or null without a pattern of layers
        return not _IMPL_OF_LAYER.fullmatch(key)
    dots = (at for at, letter in enumerate(key) if letter == ".")
    is_own = bool(own) and any(f"{key[:at]}._target_" in own for at in dots)
    if not is_own and (key not in there or key not in here):
        return False  # one version of xftrain lacks the key, which does not make the runs differ
    return _is_in(key, _DECISIVE) and not _is_in(key, _HARMLESS)


def with_digests(config: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Adds a digest after the name of each environment variable, so that values can be compared.

    Args:
        config: the saved configuration, with names of variables in place of their values.
        environment: digests of the values, by variable name.
    """

    def annotated(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: annotated(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [annotated(child) for child in value]
        if isinstance(value, str):
            return _VARIABLE.sub(with_digest, value)
        return value

    def with_digest(variable: re.Match[str]) -> str:
        digest = environment.get(variable[1])
        return variable[0] if digest is None else f"{variable[0]} ({digest})"

    return {key: annotated(value) for key, value in config.items()}


def allows(key: str, allowed: Sequence[str]) -> bool:
    """Whether `ckpt_allow` names a key or one of its groups."""
    return _is_in(key, allowed)


def _is_in(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key, or one of its groups, is among the names."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their dotted keys."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{key}.")
        else:  # a tuple in Python is a list in YAML
            values[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return values
