"""A stand-in for CUDA graphs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from xftrain.commands import preflight
from xftrain.interfaces import LossSums
from xftrain.model.gpt import GPT
from xftrain.train import step_graphs
from xftrain.train.step_graphs import StepOutcome


class Again:
    """Replays a captured function by calling it again, as a CUDA graph repeats its kernels.

    The optimizer's settings are those of the capture, and each replay overwrites the outcome of the
    one before in the same memory.
    """

    made = 0
    has_aux = False  # whether the feed-forwards have an auxiliary loss
    warming_up = nullcontext

    def __call__(self, make: Callable[[], StepOutcome]) -> tuple[Callable[[], None], StepOutcome]:
        groups = make.__self__._optimizer().param_groups
        recorded = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        assert all(isinstance(values["lr"], torch.Tensor) for values in recorded)
        zeros = torch.zeros(6).unbind()
        aux = zeros[5] if self.has_aux else None
        sums = LossSums(zeros[1], zeros[2].long(), zeros[3].long(), aux)
        held = StepOutcome(zeros[0], sums, zeros[4])
        places = [held.loss, *(one for one in sums if one is not None), held.grad_norm]

        def replay() -> None:
            type(self).made += 1
            now = [dict(group) for group in groups]
            for group, values in zip(groups, recorded, strict=True):
                group.update(values)
            loss, sums, grad_norm = make()
            for group, values in zip(groups, now, strict=True):
                group.update(values)
            values = (loss, *(one for one in sums if one is not None), grad_norm)
            for place, value in zip(places, values, strict=True):
                place.copy_(value)

        return replay, held


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    monkeypatch.setattr(step_graphs, "GraphCapture", Again)
    monkeypatch.setattr(preflight, "_check_graphs", lambda *args: None)
    monkeypatch.setattr(GPT, "compile_blocks", lambda self, packed: None)
    monkeypatch.setattr(Again, "made", 0)
