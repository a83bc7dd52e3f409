"""The timing of every peer, and the definition of its figures."""

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
    """Measures wall time and peak memory from the end of the warm-up to the end of the last step.

    It synchronizes with the device only at both ends. The time includes everything that a step
    does: making the batch, copying it, logging.

    Args:
        peer: the peer's name, for progress messages.
        device: `cuda` or `cpu`.
        warmup: number of steps before the timed ones, at least one.
        steps: number of timed steps.
        num_tokens: tokens per step.
    """

    def __init__(self, peer: str, device: str, warmup: int, steps: int, num_tokens: int) -> None:
        self.peer, self.device = peer, torch.device(device)
        self.warmup, self.steps, self.num_tokens = warmup, steps, num_tokens
        self.losses: list[tuple[Tensor, Tensor | float]] = []  # sums, and numbers of labels
        self._began = time.perf_counter()
        self._started = self._seconds = self._peak_gib = self._warmup_s = 0.0

    @classmethod
    def arguments(cls, setup: Setup) -> dict[str, Any]:
        """Returns the constructor's arguments for a measurement."""
        sizes = setup.sizes
        return {
            "peer": setup.peer,
            "device": setup.device,
            "warmup": setup.warmup,
            "steps": setup.steps,
            "num_tokens": sizes.rows * sizes.seq,
        }

    def after_step(self, loss: Tensor, num_labels: Tensor | float = 1.0) -> None:
        """Counts a step after its optimizer step, and keeps its loss.

        Args:
            loss: the loss before the update: the sum over the labels, or their mean.
            num_labels: divisor of the loss, which `figures` applies, so that the timed steps launch
                no extra kernel.
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
        """Returns the measured fields of a row.

        Args:
            flops: FLOPs per token, see `model_flops`.
            peak: peak FLOP/s of the device; None if it is not known.
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
    """Returns the FLOPs per token by xftrain's formula, which is used for every peer.

    The formula is 6 N + 12 L H K M, where N is the number of parameters that are used in matmuls:
    all parameters except embedding tables that are only looked up, such as the table of positions,
    and the token embedding unless it is tied to the output matrix.

    Args:
        model: the model whose parameters are counted.
        head: the output matrix.
        sizes: L, H and K.
        batch: a batch, for M.
    """
    found = SimpleNamespace(
        modules=model.modules,
        parameters=model.parameters,
        head=SimpleNamespace(weight=head),
        backend=None,  # the formula's attention term
        windows=[None] * sizes.num_layers,
        num_heads=sizes.num_heads,
        head_dim=sizes.dim // sizes.num_heads,
    )
    return flops_per_token(cast(GPT, found), batch)


def device_peak(setup: Setup) -> float | None:
    """Returns the vendor's peak FLOP/s for the device and the precision, or None."""
    return peak_flops(torch.device(setup.device), compute_dtype(setup.precision))


def say(text: str) -> None:
    """Prints a progress message with the time of day."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
