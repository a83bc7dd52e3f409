"""Splits parameters into groups with the same settings, by name patterns and weight decay."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn

from xftrain.errors import ConfigError
from xftrain.interfaces import Optimizer, Schedule
from xftrain.interfaces.batch_checks import describe_value
from xftrain.model.hidden_matrices import hidden_matrices

_MAX_SIMILAR = 3  # maximum number of similar names in an error
_HIDDEN, _MATRICES, _OTHERS = range(3)  # kinds of parameters, in the order of their groups


class ParameterGroup(NamedTuple):
    """Parameters with the same settings.

    Attributes:
        parameters: at least one.
        decays: whether they are matrices, to which the option's weight decay applies.
        entry: index of the matching entry in `optim.param_groups`; None if none matches.
        stacked_rows: the rows of the matrices that are stacked in each parameter, if they are the
            matrices of blocks and were split from the others; None for every other group.
    """

    parameters: list[nn.Parameter]
    decays: bool
    entry: int | None = None
    stacked_rows: list[tuple[int, ...]] | None = None


def split_parameters(
    model: nn.Module, patterns: Sequence[str] = (), with_hidden: Container[int | None] = ()
) -> list[ParameterGroup]:
    """Splits the trained parameters into groups; tied weights are one, by their first name.

    Parameters that no pattern matches come first. These, and those of each pattern, are split into
    one group of matrices and one of all other parameters (embeddings, norms, biases).
    For `with_hidden`, the matrices of blocks come first, in a group without the other matrices.

    Args:
        model: the model; parameters are named as in its state dict.
        patterns: name patterns of `fnmatch`; `*` matches any text, dots included. The first
            matching pattern applies.
        with_hidden: indices of the patterns, None for the parameters that no pattern matches, whose
            matrices of blocks are a group without the other matrices.

    Raises:
        ConfigError: a pattern matches no trained parameter, or only those of earlier patterns.
    """
    embeddings, hidden = _embedding_weights(model), hidden_matrices(model)
    by_key: dict[tuple[int, int], list[nn.Parameter]] = {}
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    for name, parameter in named:
        first = next((i for i, p in enumerate(patterns) if fnmatchcase(name, p)), -1)
        kind = _MATRICES if parameter.ndim >= 2 and id(parameter) not in embeddings else _OTHERS
        if parameter in hidden and (None if first < 0 else first) in with_hidden:
            kind = _HIDDEN
        by_key.setdefault((first, kind), []).append(parameter)
    matched = {first for first, _ in by_key}
    for index, pattern in enumerate(patterns):
        if index not in matched:
            raise _unmatched_pattern(index, pattern, [name for name, _ in named])
    return [
        ParameterGroup(
            by_key[first, kind],
            kind != _OTHERS,
            None if first < 0 else first,
            [hidden[weight] for weight in by_key[first, kind]] if kind == _HIDDEN else None,
        )
        for first, kind in sorted(by_key)
    ]


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices, and all other parameters (embeddings, norms, biases); tied weights are one."""
    by_decay = {group.decays: group.parameters for group in split_parameters(model)}
    return by_decay.get(True, []), by_decay.get(False, [])


def build_optimizer(
    optim: Optimizer, model: nn.Module, schedule: Schedule, max_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Builds the optimizer and its learning rate scheduler, and checks their types.

    Raises:
        ConfigError: the option returns no optimizer with a learning rate scheduler.
    """
    built: Any = optim.build(model, schedule, max_steps)
    is_pair = isinstance(built, tuple | list) and len(built) == 2
    if (
        is_pair
        and isinstance(built[0], torch.optim.Optimizer)
        and all(hasattr(built[1], name) for name in ("step", "state_dict", "load_state_dict"))
    ):
        return built[0], built[1]
    raise ConfigError(
        f"optim: {type(optim).__qualname__}.build must return a torch.optim.Optimizer and a "
        f"learning rate scheduler, got {describe_value(built)}."
    )


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The learning rates: `optim/lr` of the first group, `optim/lr/<name>` of later named ones."""
    first, *later = optimizer.param_groups
    named = {f"optim/lr/{group['name']}": group["lr"] for group in later if "name" in group}
    return {"optim/lr": first["lr"], **named}


def _unmatched_pattern(index: int, pattern: str, names: list[str]) -> ConfigError:
    key = f"optim.param_groups[{index}].match={pattern!r}"
    if any(fnmatchcase(name, pattern) for name in names):
        return ConfigError(
            f"{key} matches only parameters that an earlier entry matches, and the first matching "
            "entry applies: put it before those."
        )
    similar = difflib.get_close_matches(pattern, names, n=_MAX_SIMILAR, cutoff=0.0)
    return ConfigError(
        f"{key} matches none of the {len(names)} trained parameters; similar names are "
        f"{', '.join(similar)}."
    )


def _embedding_weights(model: nn.Module) -> set[int]:
    return {id(weight) for module in _embeddings(model) for weight in module.parameters()}


def _embeddings(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, nn.Embedding))
