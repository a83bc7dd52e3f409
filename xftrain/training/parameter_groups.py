"""Groups of parameters with the same settings: by patterns of names, and by weight decay."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import nn

from xftrain.errors import ConfigError

_NUM_NEAR = 3  # names of parameters that a sentence shows


class ParameterGroup(NamedTuple):
    """Parameters with the same settings.

    Attributes:
        parameters: at least one.
        decays: whether they are matrices, which the option's weight decay is for.
        entry: index in `optim.param_groups` of what matches them; None where nothing does.
    """

    parameters: list[nn.Parameter]
    decays: bool
    entry: int | None = None


def split(model: nn.Module, patterns: Sequence[str] = ()) -> list[ParameterGroup]:
    """The trained parameters in groups; tied weights count once, by their first name.

    Parameters that no pattern matches come first. Of these, and of those of each pattern, matrices
    are one group, and all else (embeddings, norms, biases) is another.

    Args:
        model: whose parameters are named as in its state dict.
        patterns: of names, as `fnmatch` reads them: `*` stands for any text, dots included. The
            first that matches a name counts.

    Raises:
        ConfigError: a pattern that matches no trained parameter, or none that is left to it.
    """
    embeddings = _embedding_weights(model)
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    for name, parameter in named:
        first = next((i for i, p in enumerate(patterns) if fnmatchcase(name, p)), -1)
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        found.setdefault((first, decays), []).append(parameter)
    matched = {first for first, _ in found}
    for index, pattern in enumerate(patterns):
        if index not in matched:
            raise _matches_nothing(index, pattern, [name for name, _ in named])
    return [
        ParameterGroup(found[key], key[1], None if key[0] < 0 else key[0])
        for key in sorted(found, key=lambda key: (key[0], not key[1]))
    ]


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices, and everything else (embeddings, norms, biases); tied weights count once."""
    by_decay = {group.decays: group.parameters for group in split(model)}
    return by_decay.get(True, []), by_decay.get(False, [])


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """`optim/lr`, of the first group, and `optim/lr/<name>` of each later one that has a name."""
    first, *others = optimizer.param_groups
    named = {f"optim/lr/{group['name']}": group["lr"] for group in others if "name" in group}
    return {"optim/lr": first["lr"], **named}


def _matches_nothing(index: int, pattern: str, names: list[str]) -> ConfigError:
    key = f"optim.param_groups[{index}].match={pattern!r}"
    if any(fnmatchcase(name, pattern) for name in names):
        return ConfigError(
            f"{key} matches only parameters that an entry before it matches, and the first one "
            "counts: put it before those."
        )
    near = difflib.get_close_matches(pattern, names, n=_NUM_NEAR, cutoff=0.0)
    return ConfigError(
        f"{key} matches none of the {len(names)} trained parameters; similar names are "
        f"{', '.join(near)}."
    )


def _embedding_weights(model: nn.Module) -> set[int]:
    return {id(weight) for module in _embeddings(model) for weight in module.parameters()}


def _embeddings(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if isinstance(module, nn.Embedding))
