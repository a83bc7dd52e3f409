"""How every peer is timed, and what its figures mean."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn

from peers.setup import Setup, Sizes
from xftrain.interfaces import Batch
from xftrain.model.flops import flops_per_token, peak_flops
from xftrain.model.gpt import GPT
from xftrain.train.hardware import compute_dtype
from xftrain.utils.device_memory import peak_memory_mib, reset_peak_memory


class Stopwatch:
    """Wall time from the end of the warm-up to the end of the last step.

    The device is waited for at both ends and not between, so that all that a step takes counts:
    making the batch, copying it, logging. Memory is the peak between the two.

    Args:
        peer: its name, for what is said meanwhile.
        device: `cuda` or `cpu`.
        warmup: steps before the timed ones, at least one.
        steps: timed ones.
        num_tokens: of a step.
    """

    def __init__(self, peer: str, device: str, warmup: int, steps: int, num_tokens: int) -> None:
        self.peer, self.device = peer, torch.device(device)
        self.warmup, self.steps, self.num_tokens = warmup, steps, num_tokens
        self.losses: list[tuple[Tensor, Tensor | float]] = []  # sums, and what they are over
        self._began = time.perf_counter()
        self._started = self._seconds = self._peak_gib = self._warmup_s = 0.0

    @classmethod
    def arguments(cls, setup: Setup) -> dict[str, Any]:
        """Its arguments for a measurement."""
        sizes = setup.sizes
        return {
            "peer": setup.peer,
            "device": setup.device,
            "warmup": setup.warmup,
            "steps": setup.steps,
            "num_tokens": sizes.rows * sizes.seq,
        }

    def after_step(self, loss: Tensor, num_labels: Tensor | float = 1.0) -> None:
        """Takes the loss of a step, that of before its update, once the optimizer has stepped.

        Args:
            loss: summed over the labels, or their mean.
            num_labels: what to divide it by, later: a division now would be work for the device.
        """
        self.losses.append((loss.detach(), num_labels))
        step = len(self.losses)
        if step == 1:
            say(f"{self.peer}: first step after {time.perf_counter() - self._began:.1f} s")
        if step == self.warmup:
            self._wait()
            reset_peak_memory(self.device)
            self._started = time.perf_counter()
            self._warmup_s = self._started - self._began
        elif step == self.warmup + self.steps:
            self._wait()
            self._seconds = time.perf_counter() - self._started
            self._peak_gib = peak_memory_mib(self.device) / 1024

    def figures(self, flops: float, peak: float | None) -> dict[str, Any]:
        """The measured part of a row.

        Args:
            flops: of a token, see `model_flops`.
            peak: the device's, a second; None where nobody knows it.
        """
        assert len(self.losses) == self.warmup + self.steps, "the run ended early"
        tokens_per_s = self.num_tokens * self.steps / self._seconds
        losses = [float(loss / count) for loss, count in self.losses]
        return {
            "ms_per_step": self._seconds / self.steps * 1e3,
            "tokens_per_s": tokens_per_s,
            "mfu": tokens_per_s * flops / peak if peak else None,
            "peak_gib": self._peak_gib,
            "loss": losses[-1],
            "losses": losses,
            "warmup_s": self._warmup_s,
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def model_flops(model: nn.Module, head: Tensor, sizes: Sizes, batch: Batch) -> float:
    """Operations a token, by xftrain's own formula for every peer: 6 N + 12 L H K M.

    N is what matrix products use: all parameters of a model that ties its embedding to its output
    matrix, but for the table of positions; where it is not tied, the embedding, which is only
    looked up, does not count either, and the output matrix does.

    Args:
        model: whose parameters count.
        head: the output matrix.
        sizes: L, H and K.
        batch: says M.
    """
    found = SimpleNamespace(
        modules=model.modules,
        parameters=model.parameters,
        head=SimpleNamespace(weight=head),
        windows=[None] * sizes.num_layers,
        num_heads=sizes.num_heads,
        head_dim=sizes.dim // sizes.num_heads,
    )
    return flops_per_token(cast(GPT, found), batch)


def device_peak(setup: Setup) -> float | None:
    """Operations a second that the vendor names for the device and the precision."""
    return peak_flops(torch.device(setup.device), compute_dtype(setup.precision))


def say(text: str) -> None:
    """A line of progress with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
