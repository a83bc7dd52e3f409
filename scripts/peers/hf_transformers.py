"""Hugging Face's transformers: GPT2LMHeadModel and LlamaForCausalLM with SDPA, compiled whole.

Compiled, transformers 5.17 hands SDPA a causal mask as a tensor, which it leaves out in eager code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peers.loop import Trained, WithLoss, train, whole
from peers.setup import Setup, Sizes


def measure(setup: Setup) -> dict[str, Any]:
    """The row of `transformers`."""
    torch.manual_seed(setup.seed)
    build = llama if setup.sizes.is_llama else gpt2
    model, about = build(setup.sizes)
    model.to(setup.device)

    def logits(model: nn.Module, tokens: Tensor) -> Tensor:
        return model(input_ids=tokens, use_cache=False).logits

    loss = whole(setup, WithLoss(model, logits))
    return train(setup, Trained(loss, model, model.lm_head.weight, about, "sdpa"))


def gpt2(sizes: Sizes) -> tuple[Any, str]:
    """GPT-2, whose linear layers and norms have biases here."""
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
        bos_token_id=None,  # GPT-2's own are beyond a small vocabulary
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return GPT2LMHeadModel(config), f"{sizes.form}, with biases"


def llama(sizes: Sizes) -> tuple[Any, str]:
    """Llama."""
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
