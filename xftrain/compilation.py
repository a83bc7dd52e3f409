"""How torch.compile behaves here: it compiles, or says that it cannot."""

import torch


def allow_many_shapes() -> None:
    """Lifts torch's limit of 8 compilations a function, past which it would quietly run eagerly.

    Each shape, dtype and bias is one compilation; a sweep in one process makes many.
    """
    torch._dynamo.config.recompile_limit = 1024
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True
