"""The default prompt of a sample, and how a sample is shown."""

from __future__ import annotations

import torch
from torch import Tensor

from xftrain.interfaces import IGNORED_LABEL, DataSource, load_batch
from xftrain.model.gpt import GPT

MAX_PROMPT_TOKENS = 1024  # of the default prompt
_TEXT_PROMPT_TOKENS = 16  # of the default prompt, where each token has a label


def sample_text(prompt: str, continuation: str) -> str:
    """The text of a sample, with headings above the prompt and above its continuation."""
    return f"prompt:\n{prompt}\ncontinuation of the model:\n{continuation}"


def default_prompt(data: DataSource) -> Tensor:
    """The beginning of the first held-out document, [1, M], up to its first label.

    Where the first token has a label, there is no prompt to answer, and it is the first few tokens.
    """
    batch = load_batch(data, "val", 0)
    longest = (batch.seqlens or (batch.tokens_BM.shape[1],))[0]
    tokens_1M, labels_M = batch.tokens_BM[:1, :longest], batch.labels_BM[0, :longest]
    places = torch.nonzero(labels_M != IGNORED_LABEL).flatten().tolist() or [0, longest - 1]
    if places[0] > 0:
        return tokens_1M[:, max(0, places[0] + 1 - MAX_PROMPT_TOKENS) : places[0] + 1]
    return tokens_1M[:, : max(1, min(_TEXT_PROMPT_TOKENS, (places[-1] + 1) // 2))]


def max_new_tokens(model: GPT, num_prompt: int, num_tokens: int) -> int:
    """The number of tokens to add: `num_tokens`, or fewer if the model has fewer positions left."""
    limit = model.max_positions
    return num_tokens if limit is None else min(num_tokens, limit - num_prompt + 1)
