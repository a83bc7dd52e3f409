"""x-transformers' TransformerWrapper and Decoder with attn_flash, compiled whole."""

from __future__ import annotations

from typing import Any

import torch

from peers.loop import ModelWithLoss, PeerModel, compiled, train
from peers.setup import Setup


def measure(setup: Setup) -> dict[str, Any]:
    """Returns the row of `x_transformers`."""
    from x_transformers import Decoder, TransformerWrapper

    sizes = setup.sizes
    options: dict[str, Any] = {}
    if sizes.is_llama:
        options = {"rotary_pos_emb": True, "attn_kv_heads": sizes.num_kv_heads, "use_rmsnorm": True}
        options |= {"ff_glu": True, "ff_swish": True}
    torch.manual_seed(setup.seed)
    model = TransformerWrapper(
        num_tokens=sizes.vocab_size,
        max_seq_len=sizes.seq,
        use_abs_pos_emb=not sizes.is_llama,
        tie_embedding=not sizes.is_llama,
        attn_layers=Decoder(
            dim=sizes.dim,
            depth=sizes.num_layers,
            heads=sizes.num_heads,
            attn_dim_head=sizes.dim // sizes.num_heads,
            attn_flash=True,
            ff_mult=sizes.hidden_dim / sizes.dim,
            ff_no_bias=True,
            **options,
        ),
    )
    model.to(setup.device)
    head = model.to_logits.weight if sizes.is_llama else model.token_emb.emb.weight
    description = sizes.form + ", gates with biases" * sizes.is_llama
    loss = compiled(setup, ModelWithLoss(model))
    return train(setup, PeerModel(loss, model, head, description, "sdpa"))
