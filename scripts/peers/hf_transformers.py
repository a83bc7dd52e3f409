"""Hugging Face's transformers: GPT2LMHeadModel and LlamaForCausalLM with SDPA, compiled whole.

When compiled, transformers 5.17 passes SDPA a causal mask tensor; in eager mode it passes none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peers.loop import ModelWithLoss, PeerModel, compiled, train
from peers.setup import Setup, Sizes


def measure(setup: Setup) -> dict[str, Any]:
    """Returns the row of `transformers`."""
    torch.manual_seed(setup.seed)
    build = llama if setup.sizes.is_llama else gpt2
    model, description = build(setup.sizes)
    model.to(setup.device)

    def logits(model: nn.Module, tokens: Tensor) -> Tensor:
        return model(input_ids=tokens, use_cache=False).logits

    loss = compiled(setup, ModelWithLoss(model, logits))
    return train(setup, PeerModel(loss, model, model.lm_head.weight, description, "sdpa"))


def gpt2(sizes: Sizes) -> tuple[Any, str]:
    """Builds GPT-2, whose linear layers and norms have biases in transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=sizes.vocab_size,
        n_positions=sizes.seq,
        n_embd=sizes.dim,
        n_layer=sizes.num_layers,
        n_head=sizes.num_heads,
        n_inner=sizes.hidden_dim,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,  # GPT-2's own ids exceed a small vocabulary
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config), f"{sizes.form}, with biases"


def llama(sizes: Sizes) -> tuple[Any, str]:
    """Builds a Llama model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.dim,
        intermediate_size=sizes.hidden_dim,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        max_position_embeddings=sizes.seq,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config), sizes.form
