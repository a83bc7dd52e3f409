"""Choices of algorithms in a form that a checkpoint can hold, and back again."""

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
    """An algorithm of cuBLASLt's for matmuls of one kind."""

    plan: Plan
    number: int  # of its proposals


def described(key: Key) -> str:
    """A matmul as another process knows it, whatever its device's number is."""
    epilogue, _, *operands = key
    return " ".join([epilogue.name, *map(str, operands)])


def saved_form(choices: Mapping[Key, Choice | None]) -> dict[str, str | None]:
    """The name of the algorithm of each matmul, None for torch's own."""
    return {
        described(key): None if choice is None else choice.plan.name(choice.number)
        for key, choice in choices.items()
    }


def proposed(
    name: str, epilogue: Epilogue, a: Tensor, b: Tensor, out: Tensor, second: Tensor | None
) -> Choice | None:
    """The algorithm of that name, launched once; None where cuBLASLt does not propose it here."""
    try:
        plan = Plan(a, b, epilogue)
        for number in range(len(plan.proposals)):
            if plan.name(number) == name:
                plan.launch(number, a, b, out, second)  # or it is refused
                return Choice(plan, number)
    except CublasError as error:
        log.debug("matmul: %s for %s", error, epilogue.name)
    return None
