"""litgpt's GPT with a cross-entropy loss, compiled whole; its architecture is always Llama's.

In the shape 124m, the gated feed-forward has 2/3 of GPT-2's inner width, so that a block has as
many weights as one of GPT-2. The embedding and the output matrix are not tied, since litgpt has no
such option.
"""

from __future__ import annotations

from typing import Any

import torch

from peers.loop import ModelWithLoss, PeerModel, compiled, train
from peers.setup import Setup


def measure(setup: Setup) -> dict[str, Any]:
    """Returns the row of `litgpt`."""
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
    loss = compiled(setup, ModelWithLoss(model))
    description = "Llama's form, untied"
    return train(setup, PeerModel(loss, model, model.lm_head.weight, description, "sdpa"))
