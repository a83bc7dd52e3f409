"""How torch.compile behaves here: it compiles, or says that it cannot."""

import torch
import torch._functorch.config


def begin_compiling(activation_budget: float = 1.0) -> None:
    """Settings of torch.compile, which are of the whole process.

    Args:
        activation_budget: share of the activations to keep for the backward pass.
    """
    allow_many_shapes()
    torch._functorch.config.activation_memory_budget = activation_budget


def end_compiling() -> None:
    """What compiles next in this process, as FlexAttention, keeps its activations."""
    torch._functorch.config.activation_memory_budget = 1.0


def allow_many_shapes() -> None:
    """Lifts torch's limit of 8 compilations a function, past which it would quietly run eagerly.

    Each shape, dtype and bias is one compilation; a sweep in one process makes many.
    """
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True
