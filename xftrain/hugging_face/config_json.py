"""Makes `config.json` and `generation_config.json` of an exported model."""

from __future__ import annotations

from typing import Any

import torch

from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.family import Family


def config_json(
    family: Family, facts: Facts, *, max_positions: int, end_id: int | None, dtype: torch.dtype
) -> dict[str, Any]:
    """The content of `config.json`.

    Args:
        family: the class that expresses the model.
        facts: the model.
        max_positions: longest text that it is said to be for, where positions have no limit.
        end_id: the token that separates documents; None for none.
        dtype: dtype of the weights.
    """
    return {
        "architectures": [family.ARCHITECTURE],
        **family.config(facts, max_positions),
        **_ends(end_id),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def generation_config_json(end_id: int | None, num_tokens: int, vocab_size: int) -> dict[str, Any]:
    """The content of `generation_config.json`, with which no padding of the vocabulary is drawn.

    Args:
        end_id: the token that separates documents; None for none.
        num_tokens: number of tokens of the tokenizer.
        vocab_size: V, the rows of the embedding, which may be more.
    """
    padding = list(range(num_tokens, vocab_size))
    return {**_ends(end_id), **({"suppress_tokens": padding} if padding else {})}


def _ends(end_id: int | None) -> dict[str, Any]:
    """A document begins after the token that separates documents, and ends with it."""
    return {"bos_token_id": end_id, "eos_token_id": end_id, "pad_token_id": end_id}
