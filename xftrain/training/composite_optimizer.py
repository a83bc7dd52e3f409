"""Several optimizers as one, each with parameters of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class CompositeOptimizer(torch.optim.Optimizer):
    """Steps its parts one after the other.

    Its groups are those of the parts, in their order, and its state is theirs: what changes or
    restores the one changes the other.

    Args:
        parts: at least one; no parameter is in two of them.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether all parts leave a step out themselves where `found_inf` says so."""
        return all(getattr(part, "_step_supports_amp_scaling", False) for part in self.parts)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of."""
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes up a state, and hands it over to the parts."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of each part; those that take GradScaler's scale and flag get them.

        Args:
            closure: makes the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        flags: dict[str, Tensor | None] = {
            name: getattr(self, name)
            for name in ("grad_scale", "found_inf")
            if hasattr(self, name) and self._step_supports_amp_scaling
        }
        for part in self.parts:
            vars(part).update(flags)
            try:
                part.step()
            finally:
                for name in flags:
                    delattr(part, name)
        return loss

    def _share(self) -> None:
        """Gives each part its groups, and the one state of all."""
        groups = iter(self.param_groups)
        for part in self.parts:
            own = [next(groups) for _ in part.param_groups]
            part.__setstate__({"state": self.state, "param_groups": own})
