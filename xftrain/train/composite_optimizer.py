"""Combines several optimizers, each of which steps some of the parameters, into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class CompositeOptimizer(torch.optim.Optimizer):
    """An optimizer that steps several optimizers, its parts, one after the other.

    Its parameter groups are those of the parts, in their order. Its state is shared with the
    parts: a change to one changes the other. It can be captured in a CUDA graph if all parts can.

    Args:
        parts: at least one; no parameter is in two of them.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        is_capturable = all("capturable" in part.defaults for part in parts)
        defaults = {"capturable": False} if is_capturable else {}
        super().__init__([group for part in parts for group in part.param_groups], defaults)
        self._share()

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether all parts skip a step by themselves if `found_inf` is set."""
        return all(getattr(part, "_step_supports_amp_scaling", False) for part in self.parts)

    def __getstate__(self) -> dict[str, Any]:
        """The state for copies and pickles."""
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a state, and shares it with the parts."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps each part; parts that support GradScaler's scale and flag receive them.

        Args:
            closure: computes the gradients, and returns the loss.
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
        """Gives each part its parameter groups, and the shared state."""
        groups = iter(self.param_groups)
        for part in self.parts:
            own = [next(groups) for _ in part.param_groups]
            part.__setstate__({"state": self.state, "param_groups": own})
