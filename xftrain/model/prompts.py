"""The default prompt of a sample, and how a sample is shown."""

from __future__ import annotations

from torch import Tensor

from xftrain.interfaces import DataSource, load_batch
from xftrain.model.gpt import GPT

PROMPT_TOKENS = 16  # maximum length of the default prompt


def sample_text(prompt: str, continuation: str) -> str:
    """The text of a sample, with headings above the prompt and above its continuation."""
    return f"prompt:\n{prompt}\ncontinuation of the model:\n{continuation}"


def default_prompt(data: DataSource) -> Tensor:
    """The beginning of the first held-out document, [1, M]."""
    batch = load_batch(data, "val", 0)
    longest = (batch.seqlens or (batch.tokens_BM.shape[1],))[0]
    return batch.tokens_BM[:1, : max(1, min(PROMPT_TOKENS, longest // 2))]


def max_new_tokens(model: GPT, num_prompt: int, num_tokens: int) -> int:
    """The number of tokens to add: `num_tokens`, or fewer if the model has fewer positions left."""
    limit = model.max_positions
    return num_tokens if limit is None else min(num_tokens, limit - num_prompt + 1)
