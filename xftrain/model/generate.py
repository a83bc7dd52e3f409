"""Generates text from a trained model, token by token, with a cache of keys and values."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnCall, AttnShape, DataSource, load_batch
from xftrain.model.attn._dense import (
    dense_bias,
    masked_attention,
    masked_kernels,
    unfused_attention,
)
from xftrain.model.gpt import GPT
from xftrain.model.layer_spec import built_bias

PROMPT_TOKENS = 16  # maximum length of the default prompt


def sample_text(prompt: str, continuation: str) -> str:
    """The text of a sample, with headings above the prompt and above its continuation."""
    return f"prompt:\n{prompt}\ncontinuation of the model:\n{continuation}"


class _LayerCache:
    """Keys and values of one layer, [B, M so far, G, K]; a window keeps only its last keys."""

    def __init__(self, bias: AttnBias) -> None:
        self.bias = bias
        self.k_BMGK: Tensor | None = None
        self.v_BMGK: Tensor | None = None

    def extend(self, k_BNGK: Tensor, v_BNGK: Tensor) -> tuple[Tensor, Tensor]:
        if self.k_BMGK is not None and self.v_BMGK is not None:
            k_BNGK = torch.cat([self.k_BMGK, k_BNGK], dim=1)
            v_BNGK = torch.cat([self.v_BMGK, v_BNGK], dim=1)
        self.k_BMGK, self.v_BMGK = k_BNGK, v_BNGK
        if self.bias.window is not None and self.bias.additive_HMM is None:
            first = max(0, k_BNGK.shape[1] - (self.bias.window - 1))  # the next query sees itself
            self.k_BMGK, self.v_BMGK = k_BNGK[:, first:], v_BNGK[:, first:]
        return k_BNGK, v_BNGK


def cached_attention(q_BNHK: Tensor, k_BNGK: Tensor, v_BNGK: Tensor, cache: _LayerCache) -> Tensor:
    """Attention of N new positions over all cached ones, with a materialized bias."""
    k_BMGK, v_BMGK = cache.extend(k_BNGK, v_BNGK)
    num_positions, num_new = k_BMGK.shape[1], q_BNHK.shape[1]
    B, _, H, K = q_BNHK.shape
    shape = AttnShape(B, num_positions, H, k_BMGK.shape[2], K)
    call = AttnCall(cache.bias, shape, q_BNHK.dtype, q_BNHK.device)
    call.bias.check_fits(shape)
    first = num_positions - num_new
    mask, query_mask = dense_bias(
        call.bias, num_positions, call.dtype, call.device, first_query=first
    )
    if (softcap := call.bias.softcap) is not None:  # torch's attention has no soft cap
        return unfused_attention(
            q_BNHK, k_BMGK, v_BMGK, mask, query_mask, scale=call.scale, softcap=softcap
        )
    q, k, v = (x.transpose(1, 2) for x in (q_BNHK, k_BMGK, v_BMGK))
    with masked_kernels(q.device):
        out = masked_attention(q, k, v, mask, scale=call.scale).transpose(1, 2)
    return out if query_mask is None else out * query_mask


def default_prompt(data: DataSource) -> Tensor:
    """The beginning of the first held-out document, [1, M]."""
    batch = load_batch(data, "val", 0)
    longest = (batch.seqlens or (batch.tokens_BM.shape[1],))[0]
    return batch.tokens_BM[:1, : max(1, min(PROMPT_TOKENS, longest // 2))]


def max_new_tokens(model: GPT, tokens_BM: Tensor, num_tokens: int) -> int:
    """The number of tokens to add: `num_tokens`, or fewer if the model has fewer positions left."""
    limit = model.max_positions
    return num_tokens if limit is None else min(num_tokens, limit - tokens_BM.shape[1] + 1)


@torch.no_grad()
def generate(
    model: GPT,
    tokens_BM: Tensor,
    num_tokens: int,
    *,
    vocab_size: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Tensor:
    """The prompt with `num_tokens` more tokens, [B, M + num_tokens].

    Args:
        model: the GPT; its training mode is restored.
        tokens_BM: the prompt, at least one token.
        num_tokens: number of tokens to add.
        vocab_size: tokens from this id on are padding of the vocabulary and are never sampled.
        temperature: 0 selects the most likely token.
        top_k: sample from the k most likely tokens; None samples from all.
        seed: seed of the samples; torch's global random state does not change.

    Raises:
        ConfigError: no prompt, more positions than the model has, or logits that are not finite.
    """
    if tokens_BM.shape[1] == 0:
        raise ConfigError("the prompt is empty: give at least one token to continue.")
    model.check_length(tokens_BM.shape[1] + num_tokens - 1)
    generator = torch.Generator(tokens_BM.device).manual_seed(seed)
    caches = [_LayerCache(built_bias(spec.bias, model.num_heads, None)) for spec in model.specs]
    was_training = model.training
    model.eval()
    new_BN, first = tokens_BM, 0
    try:
        for _ in range(num_tokens):
            positions = torch.arange(first, first + new_BN.shape[1], device=new_BN.device)
            x_BND = model.hidden(new_BN, positions[None], caches, cached_attention)
            logits_BV = F.linear(x_BND[:, -1], model.head.weight)[:, :vocab_size].float()
            first += new_BN.shape[1]
            new_BN = _sample(logits_BV, temperature, top_k, generator)
            tokens_BM = torch.cat([tokens_BM, new_BN], dim=1)
    finally:
        model.train(was_training)
    return tokens_BM


def _sample(
    logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator
) -> Tensor:
    """Samples one token per row, [B, 1]."""
    if not logits_BV.isfinite().all():  # on a GPU, sampling would abort the process
        raise ConfigError(
            "the logits are not finite, so no token can be sampled: the model's weights are not "
            "finite, or too large for this precision; give another checkpoint."
        )
    if temperature < torch.finfo(torch.float32).tiny:
        return logits_BV.argmax(dim=-1, keepdim=True)
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    # shift the maximum to 0, as dividing by a low temperature could overflow
    logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)
