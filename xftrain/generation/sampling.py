"""Draws the next token from logits, without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits. Each limit leaves at least the most likely token.

    Attributes:
        temperature: divides the logits; 0 selects the most likely token.
        top_k: draw among the k most likely tokens; None is no limit.
        top_p: draw among the most likely tokens whose probabilities sum up to p (nucleus sampling,
            Holtzman et al., 2020, arXiv:1904.09751); None is no limit.
        min_p: draw among the tokens with at least this fraction of the highest probability (Nguyen
            et al., 2024, arXiv:2407.01082); None is no limit.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether it selects the most likely token."""
        return self.temperature < torch.finfo(torch.float32).tiny

    def draw(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """One token per row, int64 [B].

        Args:
            logits_BV: float32 logits of the tokens that may be drawn.
            generator: generator of the logits' device.
        """
        if self.is_greedy:
            return logits_BV.argmax(dim=-1)
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            least_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        # shift the maximum to 0, as dividing by a low temperature could overflow
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / self.temperature
        probs_BV = logits_BV.softmax(-1)
        if self.min_p is not None:
            least_B1 = self.min_p * probs_BV.amax(-1, keepdim=True)
            probs_BV = probs_BV.masked_fill(probs_BV < least_B1, 0.0)
        if self.top_p is not None and self.top_p < 1:
            probs_BV = _nucleus(probs_BV, self.top_p)
        # the token with the first event of independent Poisson processes, as torch.multinomial has
        # it, which cannot be captured in a CUDA graph
        times_BV = torch.empty_like(probs_BV).exponential_(1, generator=generator)
        return (probs_BV / times_BV).argmax(dim=-1)


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """The probabilities, with 0 for the tokens outside the nucleus."""
    probs_BV = probs_BV / probs_BV.sum(-1, keepdim=True)
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV  # probability of all more likely tokens
    is_out_BV = before_BV >= top_p
    is_out_BV[:, 0] = False  # the most likely token stays, also for a p of 0
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV.masked_fill(is_out_BV, 0.0))
