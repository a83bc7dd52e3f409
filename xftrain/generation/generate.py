"""Generates text from a trained model, for several prompts of any lengths at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.generation.cache import Cache
from xftrain.generation.continuation import Continuation, Stops
from xftrain.generation.decoding import Decoding
from xftrain.generation.prefill import prefill
from xftrain.generation.sampling import Sampling
from xftrain.generation.step import DecodeStep
from xftrain.model.evaluation_mode import evaluation_mode
from xftrain.model.gpt import GPT

_AT_ONCE = 32  # tokens that a GPU draws before the host reads them


@dataclass(frozen=True)
class Generated:
    """What `generate_texts` has made, and how long it took.

    Attributes:
        continuations: for each prompt in turn, its continuations.
        first_token_s: seconds until the first token of every row was there.
        decode_s: seconds of all later tokens.
        num_decoded: number of tokens of all texts after their first ones, made in `decode_s`.
        cache_bytes: size of the cache of keys and values.
        uses_graph: whether a CUDA graph computed the steps.
    """

    continuations: list[Continuation]
    first_token_s: float
    decode_s: float
    num_decoded: int
    cache_bytes: int
    uses_graph: bool

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second after the first one of each row; None if there was only one."""
        return self.num_decoded / self.decode_s if self.num_decoded else None

    def __str__(self) -> str:
        speed = self.tokens_per_s
        return (
            f"first token after {self.first_token_s:.3g} s"
            + ("" if speed is None else f", then {speed:,.0f} tokens/s")
            + f"; cache of keys and values: {self.cache_bytes / 2**20:.3g} MiB"
            + ("; CUDA graph" if self.uses_graph else "")
        )


@torch.no_grad()
def generate_texts(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    *,
    vocab_size: int,
    sampling: Sampling = Sampling(),  # noqa: B008  # it is frozen
    stops: Stops = Stops(),  # noqa: B008
    num_samples: int = 1,
    seed: int = 0,
    on_tokens: Callable[[Sequence[Continuation]], None] | None = None,
) -> Generated:
    """Continues prompts of any lengths.

    Args:
        model: the GPT; its training mode is restored.
        prompts: tokens of each prompt, at least one.
        num_tokens: maximum number of tokens to add to each.
        vocab_size: tokens from this id on are padding of the vocabulary and are never drawn.
        sampling: how a token is drawn.
        stops: what ends a text before.
        num_samples: number of continuations of each prompt.
        seed: seed of the draws; torch's global random state does not change.
        on_tokens: is called with the continuations when there are new tokens.

    Raises:
        ConfigError: an empty prompt, more positions than the model has, a bias that is not causal,
            or logits that are not finite.
    """
    if not prompts or not all(prompts):
        raise ConfigError("the prompt is empty: give at least one token to continue.")
    lengths = [len(prompt) for prompt in prompts for _ in range(num_samples)]
    model.check_length(max(lengths) + num_tokens - 1)
    continuations = [Continuation(stops) for _ in lengths]
    with evaluation_mode(model):
        device = model.head.weight.device
        begin = time.perf_counter()
        cache = Cache(model, len(lengths), max(lengths) + num_tokens - 1)
        logits_BV = prefill(model, prompts, cache, num_samples)
        decoding = Decoding(
            DecodeStep(model, cache),
            logits_BV,
            torch.tensor(lengths, device=device),
            num_tokens,
            vocab_size=vocab_size,
            sampling=sampling,
            seed=seed,
        )
        _take(decoding, continuations, num_tokens, on_tokens)
        first_token_s = time.perf_counter() - begin
        num_steps = num_tokens if device.type == "cuda" and on_tokens is None else 1
        _decode(decoding, continuations, num_tokens, min(num_steps, _AT_ONCE), on_tokens)
        decode_s = time.perf_counter() - begin - first_token_s
    return Generated(
        continuations,
        first_token_s,
        decode_s,
        sum(max(0, len(one.tokens) - 1) for one in continuations),
        cache.num_bytes,
        decoding.uses_graph,
    )


def _decode(
    decoding: Decoding,
    continuations: list[Continuation],
    num_tokens: int,
    at_once: int,
    on_tokens: Callable[[Sequence[Continuation]], None] | None,
) -> None:
    """Draws tokens until all texts have ended, and reads `at_once` of them at a time."""
    is_first = True
    while decoding.num_drawn < num_tokens and any(one.reason is None for one in continuations):
        if is_first:
            decoding.capture(num_tokens - decoding.num_drawn)
            is_first = False
        decoding.advance(min(at_once, num_tokens - decoding.num_drawn))
        _take(decoding, continuations, num_tokens, on_tokens)


def _take(
    decoding: Decoding,
    continuations: list[Continuation],
    num_tokens: int,
    on_tokens: Callable[[Sequence[Continuation]], None] | None,
) -> None:
    """Adds the new tokens to the texts.

    Raises:
        ConfigError: logits were not finite.
    """
    drawn_BN, is_finite = decoding.read()
    if not is_finite:
        raise ConfigError(
            "the logits are not finite, so no token can be sampled: the model's weights are not "
            "finite, or too large for this precision; give another checkpoint."
        )
    for one, drawn in zip(continuations, drawn_BN.tolist(), strict=True):
        one.add(drawn[one.num_read :], is_last=len(drawn) == num_tokens)
    if on_tokens is not None:
        on_tokens(continuations)


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
    """Prompts of one length with `num_tokens` more tokens, [B, M + num_tokens].

    Args:
        model: the GPT; its training mode is restored.
        tokens_BM: the prompts, at least one token each.
        num_tokens: number of tokens to add.
        vocab_size: as for `generate_texts`.
        temperature: 0 selects the most likely token.
        top_k: sample from the k most likely tokens; None samples from all.
        seed: seed of the draws.

    Raises:
        ConfigError: as for `generate_texts`.
    """
    if num_tokens == 0:
        return tokens_BM
    made = generate_texts(
        model,
        tokens_BM.tolist(),
        num_tokens,
        vocab_size=vocab_size,
        sampling=Sampling(temperature, top_k),
        seed=seed,
    )
    new_BN = torch.tensor([one.tokens for one in made.continuations], device=tokens_BM.device)
    return torch.cat([tokens_BM, new_BN], dim=1)
