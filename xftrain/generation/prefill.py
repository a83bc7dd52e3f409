"""Reads the prompts: fills the cache with them, and returns the logits of the tokens that follow.

Prompts of different lengths lie one behind the other in a single row, as packed documents do, so
that no position is padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from xftrain.generation.cache import Cache, LayerCache
from xftrain.interfaces import AttnBias, positions_of
from xftrain.model.gpt import GPT
from xftrain.model.prompt_attention import attend_prompt

_MAX_TOKENS = 16_384  # of prompts that are read together


def prefill(model: GPT, prompts: Sequence[Sequence[int]], cache: Cache, copies: int = 1) -> Tensor:
    """The logits [B, V] of the tokens that follow the prompts; B is prompts times copies.

    Args:
        model: the model, in evaluation mode.
        prompts: tokens of each prompt, at least one.
        cache: an empty cache of B rows.
        copies: number of rows that continue each prompt.
    """
    device = model.head.weight.device
    logits = []
    for rows in _groups([len(prompt) for prompt in prompts]):
        group = [prompts[row] for row in rows]
        lengths = tuple(map(len, group))
        tokens_1M = torch.tensor([[token for prompt in group for token in prompt]], device=device)
        attention = _PromptAttention([row * copies for row in rows], lengths)
        positions_1M = positions_of(sum(lengths), lengths).to(device)
        x_1MD = model.hidden(tokens_1M, positions_1M, cache.layers, attention)
        last_B = torch.tensor(list(accumulate(lengths)), device=device) - 1
        logits.append(model.logits(x_1MD[0, last_B]))
    logits_PV = torch.cat(logits)
    if copies == 1:
        return logits_PV
    for layer in cache.layers:
        for tensor in (layer.k_BCGK, layer.v_BCGK):
            rows_PN = tensor.unflatten(0, (len(prompts), copies))
            rows_PN[:, 1:] = rows_PN[:, :1]
    return logits_PV.repeat_interleave(copies, dim=0)


def _groups(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The indices of the prompts that are read together."""
    group: list[int] = []
    num_tokens = 0
    for row, length in enumerate(lengths):
        if group and num_tokens + length > _MAX_TOKENS:
            yield group
            group, num_tokens = [], 0
        group.append(row)
        num_tokens += length
    yield group


class _PromptAttention:
    """Attention within each prompt of a packed row, whose keys and values go to the cache."""

    def __init__(self, rows: Sequence[int], lengths: tuple[int, ...]) -> None:
        self._rows, self._lengths = rows, lengths
        self._ends = list(accumulate(lengths))

    def __call__(self, q_1MHK: Tensor, k_1MGK: Tensor, v_1MGK: Tensor, layer: LayerCache) -> Tensor:
        for row, length, end in zip(self._rows, self._lengths, self._ends, strict=True):
            layer.fill(row, k_1MGK[0, end - length : end], v_1MGK[0, end - length : end])
        if len(set(self._lengths)) == 1:  # one call for all prompts
            shape = (len(self._lengths), self._lengths[0])
            q, k, v = (x[0].unflatten(0, shape) for x in (q_1MHK, k_1MGK, v_1MGK))
            return _attend(q, k, v, layer.bias).flatten(0, 1)[None]
        parts = zip(*(x.split(self._lengths, dim=1) for x in (q_1MHK, k_1MGK, v_1MGK)), strict=True)
        return torch.cat([_attend(q, k, v, layer.bias) for q, k, v in parts], dim=1)


def _attend(q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, bias: AttnBias) -> Tensor:
    return attend_prompt(q_BMHK, k_BMGK, v_BMGK, bias.simplified(q_BMHK.shape[1]))
