"""Weight initialization as one table, tested against every parameter of every preset."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn


class Rule(NamedTuple):
    """Parameters whose name matches are constant `mean`, or normal with `mean` and `std`."""

    pattern: str
    mean: float
    std: float


def init_table(
    init_std: float,
    num_layers: int,
    *,
    residual: Literal["scaled", "zero"] = "scaled",
    head: Literal["normal", "zero"] = "normal",
) -> tuple[Rule, ...]:
    """The initialization rules (GPT-2; Radford et al., 2019); the first that matches applies.

    Args:
        init_std: standard deviation of the matrices.
        num_layers: number of blocks.
        residual: matrices that write into the residual stream are `scaled` by 1/sqrt(2 x layers),
            since 2 x layers of them add up, or `zero`, so that each block begins as the identity
            (Fixup; Zhang et al., 2019, arXiv:1901.09321).
        head: the output matrix is drawn like the others, or `zero`, so that the first prediction
            is uniform.
    """
    residual_std = 0.0 if residual == "zero" else init_std / math.sqrt(2 * num_layers)
    first = (Rule(r"head\.weight", 0.0, 0.0),) if head == "zero" else ()
    return (
        *first,
        Rule(r"(embed|head|pos\.table)\.weight", 0.0, init_std),
        Rule(r"blocks\.\d+\.(heads\.qkv|ffn\.(.+\.)?up)\.weight", 0.0, init_std),
        Rule(r"blocks\.\d+\.(out|ffn\.(.+\.)?down)\.weight", 0.0, residual_std),
        Rule(r"(.*\.)?norm\w*\.weight", 1.0, 0.0),
        Rule(r".*\.bias", 0.0, 0.0),
    )


def initialize(model: nn.Module, table: Sequence[Rule]) -> list[str]:
    """Applies a table in place.

    Returns:
        Names that no rule matches, such as those of a user's own layers, which keep the values
        from their constructor.
    """
    unmatched = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rule = next((rule for rule in table if re.fullmatch(rule.pattern, name)), None)
            if rule is None:
                unmatched.append(name)
            elif rule.std == 0.0:
                parameter.fill_(rule.mean)
            else:
                parameter.normal_(rule.mean, rule.std)
    return unmatched
