"""GPT-2 in plain PyTorch, written for this comparison after github.com/karpathy/nanoGPT.

It has bias-free linear layers and norms, learned positions, the tanh approximation of GELU and tied
weights; the model and its loss are compiled as one graph. It starts from xftrain's initial weights,
so that its losses must equal those of `bare` and `xftrain`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers.loop import PeerModel, compiled, run_config, train
from peers.setup import Setup, Sizes
from xftrain.benchmark.worker import Unsupported
from xftrain.commands import builder

# Patterns of xftrain's parameter names, and the names of the same parameters in `NanoGPT`.
RENAMES = {
    r"embed\.weight": "wte.weight",
    r"pos\.table\.weight": "wpe.weight",
    r"blocks\.(\d+)\.norm_attn\.weight": r"h.\1.ln_1.weight",
    r"blocks\.(\d+)\.heads\.qkv\.weight": r"h.\1.attn_in.weight",
    r"blocks\.(\d+)\.out\.weight": r"h.\1.attn_out.weight",
    r"blocks\.(\d+)\.norm_ffn\.weight": r"h.\1.ln_2.weight",
    r"blocks\.(\d+)\.ffn\.up\.weight": r"h.\1.mlp_in.weight",
    r"blocks\.(\d+)\.ffn\.down\.weight": r"h.\1.mlp_out.weight",
    r"norm\.weight": "ln_f.weight",
    r"head\.weight": "lm_head.weight",
}


class Block(nn.Module):
    """A pre-norm transformer block: attention, then a feed-forward, each with a residual."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        dim, self.num_heads = sizes.dim, sizes.num_heads
        self.ln_1 = nn.LayerNorm(dim, bias=False)
        self.attn_in = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_out = nn.Linear(dim, dim, bias=False)
        self.ln_2 = nn.LayerNorm(dim, bias=False)
        self.mlp_in = nn.Linear(dim, sizes.hidden_dim, bias=False)
        self.mlp_out = nn.Linear(sizes.hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, M, D] to [B, M, D]."""
        B, M, D = x.shape
        heads = (B, M, self.num_heads, D // self.num_heads)
        q, k, v = (
            part.view(heads).transpose(1, 2) for part in self.attn_in(self.ln_1(x)).split(D, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_out(y.transpose(1, 2).reshape(B, M, D))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.ln_2(x)), approximate="tanh"))


class NanoGPT(nn.Module):
    """A GPT-2 model that maps tokens and labels to the mean cross-entropy."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.vocab_size, sizes.dim)
        self.wpe = nn.Embedding(sizes.seq, sizes.dim)
        self.h = nn.ModuleList(Block(sizes) for _ in range(sizes.num_layers))
        self.ln_f = nn.LayerNorm(sizes.dim, bias=False)
        self.lm_head = nn.Linear(sizes.dim, sizes.vocab_size, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross-entropy over the labels."""
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns xftrain's weights under the names of `NanoGPT`; exactly one rule matches a name."""
    found = {}
    for name, weight in weights.items():
        ((pattern, new),) = [rule for rule in RENAMES.items() if re.fullmatch(rule[0], name)]
        found[re.sub(pattern, new, name)] = weight
    return found


def measure(setup: Setup) -> dict[str, Any]:
    """Returns the row of `nanogpt`."""
    if setup.sizes.is_llama:
        raise Unsupported("nanogpt is GPT-2: it has no rope, rmsnorm, swiglu or grouped heads")
    weights = builder.build_model(run_config(setup.without_overrides())).state_dict()
    model = NanoGPT(setup.sizes)
    model.load_state_dict(renamed(weights))
    model.to(setup.device)
    loss = compiled(setup, model)
    return train(setup, PeerModel(loss, model, model.lm_head.weight, setup.sizes.form, "sdpa"))
