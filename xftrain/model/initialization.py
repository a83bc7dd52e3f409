"""Weight initialization as one table, tested against every parameter of every preset."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch
from torch import nn


class Rule(NamedTuple):
    """Parameters whose name matches are constant `mean`, or normal with `mean` and `std`."""

    pattern: str
    mean: float
    std: float


def init_table(init_std: float, num_layers: int) -> tuple[Rule, ...]:
    """The initialization rules (GPT-2; Radford et al., 2019); the first that matches applies.

    Matrices that write into the residual stream are scaled by 1/sqrt(2 x layers), since
    2 x layers of them add up.
    """
    residual_std = init_std / math.sqrt(2 * num_layers)
    return (
        Rule(r"(embed|head|pos\.table)\.weight", 0.0, init_std),
        Rule(r"blocks\.\d+\.(heads\.qkv|ffn\.(.+\.)?up)\.weight", 0.0, init_std),
        Rule(r"blocks\.\d+\.(out|ffn\.(.+\.)?down)\.weight", 0.0, residual_std),
        Rule(r"(.*\.)?norm\w*\.weight", 1.0, 0.0),
        Rule(r".*\.bias", 0.0, 0.0),
    )


def initialize(model: nn.Module, init_std: float, num_layers: int) -> list[str]:
    """Applies the table in place.

    Returns:
        Names that no rule matches, such as those of a user's own layers, which keep the values
        from their constructor.
    """
    table = init_table(init_std, num_layers)
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
