"""Converts autotuned algorithms to a form that a checkpoint can hold, and back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from xftrain.kernels.cublaslt import CublasError, Epilogue, Plan

log = logging.getLogger(__name__)

# Epilogue, device, dtype, and shape and strides of both operands.
Key = tuple[
    Epilogue, torch.device, torch.dtype, torch.Size, tuple[int, ...], torch.Size, tuple[int, ...]
]


class Choice(NamedTuple):
    """A cuBLASLt algorithm for matmuls of one shape, layout, dtype and epilogue."""

    plan: Plan
    number: int  # index among the proposals of the plan


def describe_matmul(key: Key) -> str:
    """A description of a matmul that is the same in every process and for every device index."""
    epilogue, _, *operands = key
    return " ".join([epilogue.name, *map(str, operands)])


def algorithm_names(choices: Mapping[Key, Choice | None]) -> dict[str, str | None]:
    """The name of the algorithm of each matmul, None for torch's own."""
    return {
        describe_matmul(key): None if choice is None else choice.plan.name(choice.number)
        for key, choice in choices.items()
    }


def find_proposal(
    name: str, epilogue: Epilogue, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None
) -> Choice | None:
    """The algorithm with this name, launched once; None if cuBLASLt does not propose it here."""
    try:
        plan = Plan(a, b, epilogue)
        for number in range(len(plan.proposals)):
            if plan.name(number) == name:
                plan.launch(number, a, b, out, second)  # raises CublasError if refused
                return Choice(plan, number)
    except CublasError as error:
        log.debug("matmul: %s for %s", error, epilogue.name)
    return None
