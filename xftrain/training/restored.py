"""Whether the state that an optimizer has from a checkpoint is one that it could have made."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xftrain.errors import ConfigError

# What torch's optimizers keep for each weight; of Adafactor the second for matrices.
_NAMES: dict[type[torch.optim.Optimizer], tuple[set[str], ...]] = {
    torch.optim.AdamW: ({"step", "exp_avg", "exp_avg_sq"},),
    torch.optim.Adafactor: ({"step", "variance"}, {"step", "row_var", "col_var"}),
}


def check_restored(optimizer: torch.optim.Optimizer, ckpt: object) -> None:
    """Refuses a state that would end the first step, or make the weights wrong in it.

    Args:
        optimizer: one of the user's own is not looked at.
        ckpt: the checkpoint, for the message.

    Raises:
        ConfigError: there are other tensors, of other shapes, or a number of steps that is none.
    """
    kinds = [names for kind, names in _NAMES.items() if isinstance(optimizer, kind)]
    for weight, state in optimizer.state.items() if kinds else ():
        if not (
            state.keys() in kinds[0]
            and all(_fits(name, value, weight) for name, value in state.items())
        ):
            raise ConfigError(
                f"ckpt={ckpt} cannot be gone on from: its optimizer's state of a weight of shape "
                f"{list(weight.shape)} is not what {type(optimizer).__name__} saves; give another "
                "one, or none to start afresh."
            )


def _fits(name: str, value: object, weight: Tensor) -> bool:
    if not isinstance(value, Tensor):
        return False
    if name == "step":
        return value.numel() == 1 and 0 <= float(value) < math.inf
    lengths = zip(value.shape, weight.shape, strict=False)
    # a row of a matrix has 1 for its columns
    return value.ndim == weight.ndim and all(one in (1, other) for one, other in lengths)
