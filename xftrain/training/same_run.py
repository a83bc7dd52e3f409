"""Whether a checkpoint is of the run that is to go on from it: the same model, data and seed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.printable import one_line, shortened

_HOW_TO_GO_ON = ("ckpt", "ckpt_allow")
# Keys, and groups of keys, without which a run that goes on would be another one; and those of
# them that change how it is computed or watched, not what.
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
    "data.stop_at_accuracy",
    "model.activation_budget",
    "model.activation_checkpointing",
    "model.attn",
    "model.bias.impl",
    "model.ffn.impl",
)
_IMPL_OF_LAYER = re.compile(r"model\.layers\..+\.(bias|ffn)\.impl")
_VARIABLE = re.compile(r"\$\{oc\.env:([^{}]+)\}")
_LONGEST = 200  # characters of a value that is shown


def refuse_other_model(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Compares names and shapes of two state dicts, and dtypes but for the width of floats.

    Raises:
        ConfigError: they are not of the same model.
    """
    shapes = [{name: _shape(value) for name, value in weights.items()} for weights in (saved, ours)]
    differ = [n for n in {**saved, **ours} if shapes[0].get(n) != shapes[1].get(n)]
    if differ:
        there, here = (named.get(differ[0], "absent") for named in shapes)
        name = one_line(differ[0])[:_LONGEST]
        raise ConfigError(
            f"ckpt holds another model: {len(differ)} of its tensors differ from this one's, first "
            f"{name}, {there} there and {here} here; set model as in its run's config.yaml."
        )


def _shape(value: Tensor) -> str:
    shape = str(list(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"


def refuse_other_optimizer(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compares the optimizers of two configurations, and their groups of parameters.

    What one optimizer has kept, another has no use for.

    Raises:
        ConfigError: which they are.
    """
    there, here = (config["optim"].get("name") for config in (saved, current))
    if there is not None and here is not None and there != here:
        raise ConfigError(
            f"ckpt holds the state of optim={there}, which optim={here} cannot go on from: set "
            f"optim={there}."
        )
    there, here = (_group_structure(config["optim"]) for config in (saved, current))
    if there != here:
        raise ConfigError(
            f"ckpt holds the state of an optimizer with optim.param_groups={_shown(there)}, and "
            f"this run has {_shown(here)}: set match and optimizer of each as there, since a state "
            "belongs to its group; lr and weight_decay may change."
        )


def _group_structure(optim: Mapping[str, Any]) -> list[Any]:
    """What decides which parameters are in a group, and what steps them."""
    entries, found = optim.get("param_groups") or (), []
    for entry in entries if isinstance(entries, list | tuple) else ():
        entry = entry if isinstance(entry, Mapping) else {}
        node = entry.get("optimizer")
        if isinstance(node, Mapping):
            node = node.get("name", node.get("_target_"))
        found.append({"match": entry.get("match")} | ({} if node is None else {"optimizer": node}))
    return found


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose values differ, each as `optim.lr 0.003 -> 1e-05`, but those of going on."""
    before, after = (flat(config) for config in (saved, current))
    return {
        key: f"{one_line(key)} {_shown(before.get(key))} -> {_shown(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _HOW_TO_GO_ON
    }


def _shown(value: Any) -> str:
    return shortened(repr(value), _LONGEST)


def refuse_other_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], *, moved: bool = False
) -> None:
    """Compares two configurations in what decides which batches are seen and what is learned.

    Args:
        saved: of the checkpoint.
        current: of the run that goes on; its `ckpt_allow` names keys, or groups of them, that may
            differ.
        moved: the data is known to have the same content, wherever it lies.

    Raises:
        ConfigError: the keys that differ, and how to allow them.
    """
    allowed, known = current["ckpt_allow"], flat(current)
    for name in allowed:
        if not any(_is_in(key, (name,)) for key in known):
            raise ConfigError(f"ckpt_allow names {name!r}, which is no key of the configuration.")
    there = flat(saved)
    own = {key for key in {**there, **known} if key.endswith("._target_")}
    differing = [
        (key, text)
        for key, text in differences(saved, current).items()
        if _decides(key, there, known, own)
        and not _is_in(key, allowed)
        and not (moved and key == "data.path")
    ]
    if differing:
        keys = ",".join(key for key, _ in differing)
        raise ConfigError(
            f"ckpt is of a run with another configuration: {', '.join(t for _, t in differing)}; "
            f"set them as there, or allow them to change with ckpt_allow=[{keys}]."
        )


def _decides(key: str, there: Mapping[str, Any], here: Mapping[str, Any], own: Set[str]) -> bool:
    """Whether a run with another value, or without the key, would be another run.

    Args:
        key: with its groups.
        there: values of the checkpoint's run by their keys.
        here: those of this run.
        own: keys of either that name a class of somebody's own.
    """
    if key.endswith("_target_"):  # a class of somebody's own
        return True
    if key.startswith("model.layers."):  # a model that has no pattern says so, or is of before it
        return not _IMPL_OF_LAYER.fullmatch(key)
    dots = (at for at, letter in enumerate(key) if letter == ".")
    is_own = bool(own) and any(f"{key[:at]}._target_" in own for at in dots)
    if not is_own and (key not in there or key not in here):
        return False  # new since, which says nothing of the former run
    return _is_in(key, _DECISIVE) and not _is_in(key, _HARMLESS)


def with_digests(config: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with a digest behind each variable's name, so that values can be compared.

    Args:
        config: as it is written down, with names of variables in place of their values.
        environment: digests by these names.
    """

    def told(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: told(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [told(child) for child in value]
        if isinstance(value, str):
            return _VARIABLE.sub(with_digest, value)
        return value

    def with_digest(found: re.Match[str]) -> str:
        digest = environment.get(found[1])
        return found[0] if digest is None else f"{found[0]} ({digest})"

    return {key: told(value) for key, value in config.items()}


def allows(key: str, allowed: Sequence[str]) -> bool:
    """Whether `ckpt_allow` names a key, or a group that it is in."""
    return _is_in(key, allowed)


def _is_in(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or in a group that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:  # a tuple is saved as it is and typed as a list
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
