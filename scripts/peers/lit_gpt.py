"""litgpt's GPT, Llama-style in both shapes, with the cross-entropy of its logits, compiled whole.

In GPT-2's shape the gated feed-forward has 2/3 of the inner width, so that a block has as many
weights as GPT-2's; the embedding is not tied, which litgpt does not offer.
"""

from __future__ import annotations

from typing import Any

import torch

from peers.loop import Trained, WithLoss, train, whole
from peers.setup import Setup


def measure(setup: Setup) -> dict[str, Any]:
    """The row of `litgpt`."""
    from litgpt.model import GPT, Config

    sizes = setup.sizes
    torch.manual_seed(setup.seed)
    model = GPT(
        Config(
            name="peer",
            block_size=sizes.seq,
            vocab_size=sizes.vocab_size,
            padded_vocab_size=sizes.vocab_size,
            n_layer=sizes.num_layers,
            n_head=sizes.num_heads,
            n_query_groups=sizes.num_kv_heads,
            n_embd=sizes.dim,
            intermediate_size=sizes.hidden_dim if sizes.is_llama else sizes.hidden_dim * 2 // 3,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        )
    )
    model.apply(model._init_weights)
    model.to(setup.device)
    loss = whole(setup, WithLoss(model))
    return train(setup, Trained(loss, model, model.lm_head.weight, "Llama's form, untied", "sdpa"))
