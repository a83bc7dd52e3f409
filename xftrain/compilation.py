"""How torch.compile behaves here: it compiles, or says that it cannot."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._functorch.config

log = logging.getLogger(__name__)

_products: list[Any] = []  # operators of ours that are matrix products


def begin_compiling(activation_budget: float = 1.0) -> None:
    """Settings of torch.compile, which are of the whole process.

    Args:
        activation_budget: share of the activations to keep for the backward pass.
    """
    allow_many_shapes()
    if activation_budget < 1:
        _weigh_own_products()
    torch._functorch.config.activation_memory_budget = activation_budget


def end_compiling() -> None:
    """What compiles next in this process, as FlexAttention, keeps its activations."""
    torch._functorch.config.activation_memory_budget = 1.0


def declare_products(operators: Sequence[Any]) -> None:
    """Says which operators are matrix products, for a budget to recompute others before them."""
    _products.extend(operators)


def _weigh_own_products() -> None:
    """torch knows its own products; any other operator it takes for cheap, and drops it first."""
    from torch._functorch import partitioners  # imports much

    known: Callable[[], Any] | None = getattr(partitioners, "get_default_op_list", None)
    if known is None:  # a budget would drop our products before all others
        log.warning("model.activation_budget: products are recomputed first in this torch")
    if known is None or getattr(known, "has_ours", False):
        return

    def with_ours() -> Any:
        found = known()
        found.compute_intensive_ops.update(_products)
        return found

    with_ours.has_ours = True  # type: ignore[attr-defined]
    partitioners.get_default_op_list = with_ours


def allow_many_shapes() -> None:
    """Lifts torch's limit of 8 compilations a function, past which it would quietly run eagerly.

    Each shape, dtype and bias is one compilation; a sweep in one process makes many.
    """
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True
