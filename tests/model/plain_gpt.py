"""Small GPTs, and their logits in float64, written out from the weights alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tests.models import VOCAB, changed, options
from xftrain.commands.builder import assemble
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import ModelConfig
from xftrain.model.gpt import GPT


def config_of(*, fraction: float | None = None, **chosen: Any) -> ModelConfig:
    """The configuration of a model with an RMSNorm and squared ReLU, and a window of 3 keys.

    Args:
        fraction: of the rotary positions; None is their default.
        chosen: see `options`.
    """
    cfg = options(**{"norm": "rmsnorm", "ffn": "relu2", "dim": 32, "attn": "sdpa", **chosen})
    if cfg.model.bias.name == "window":
        cfg = changed(cfg, {"model.bias.window": 3})
    if fraction is not None:
        cfg = changed(cfg, {"model.pos.fraction": fraction})
    return cfg.model


def made(**chosen: Any) -> tuple[GPT, ModelConfig]:
    """A model whose matrices and scales all matter, and its configuration, see `config_of`."""
    torch.manual_seed(0)
    config = config_of(**chosen)
    model = assemble(config, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.ndim > 1 else parameter.uniform_(0.5, 2.0)
    return model.eval(), config


def plain_logits(
    config: ModelConfig, model: GPT, tokens_M: Tensor, seqlens: tuple[int, ...] | None = None
) -> Tensor:
    """The logits [M, V] of one row, of a model with an RMSNorm and squared ReLU.

    Args:
        config: the configuration of the model.
        model: the model, of which only the weights are read.
        tokens_M: the tokens.
        seqlens: lengths of the documents packed into the row.
    """
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    lengths = list(seqlens or (len(tokens_M),))
    documents = zip(tokens_M.split(lengths), lengths, strict=True)
    return torch.cat([_of_document(config, weights, tokens_M) for tokens_M, _ in documents])


def _of_document(config: ModelConfig, weights: dict[str, Tensor], tokens_M: Tensor) -> Tensor:
    x_MD = weights["embed.weight"][tokens_M]
    if config.pos.name == "learned":
        x_MD = x_MD + weights["pos.table.weight"][: len(tokens_M)]
    if config.norm_embedding:
        x_MD = _rms(x_MD, weights["norm_embed.weight"])
    for index in range(config.num_layers):
        start = f"blocks.{index}."
        own = {name.removeprefix(start): w for name, w in weights.items() if start in name}
        x_MD = x_MD + _attention(config, own, _rms(x_MD, own["norm_attn.weight"]))
        inner_MF = _rms(x_MD, own["norm_ffn.weight"]) @ own["ffn.up.weight"].T
        x_MD = x_MD + inner_MF.clamp(min=0).square() @ own["ffn.down.weight"].T
    return _rms(x_MD, weights["norm.weight"]) @ weights["head.weight"].T


def _rms(x: Tensor, scale: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale


def _attention(config: ModelConfig, own: dict[str, Tensor], x_MD: Tensor) -> Tensor:
    """Attention, head after head, each query over the keys that it sees."""
    H, K = config.num_heads, config.dim // config.num_heads
    heads = (x_MD @ own["heads.qkv.weight"].T).split(K, dim=1)
    G = (len(heads) - H) // 2
    window = getattr(config.bias, "window", None) or len(x_MD)
    outs = []
    for h in range(H):
        group = h * G // H
        q_MK, k_MK, v_MK = heads[h], heads[H + group], heads[H + G + group]
        if config.qk_norm:
            q_MK, k_MK = _rms(q_MK, own["norm_q.weight"]), _rms(k_MK, own["norm_k.weight"])
        q_MK, k_MK = _rotated(config.pos, q_MK), _rotated(config.pos, k_MK)
        slope = 2.0 ** (-8 * (h + 1) / H) if config.bias.name == "alibi" else 0.0
        out_MK = []
        for i in range(len(x_MD)):
            first = max(0, i + 1 - window)
            scores = k_MK[first : i + 1] @ q_MK[i] / math.sqrt(K)
            if config.score_softcap is not None:
                scores = config.score_softcap * torch.tanh(scores / config.score_softcap)
            distances = torch.arange(i - first, -1, -1, dtype=torch.float64)
            out_MK.append((scores - slope * distances).softmax(0) @ v_MK[first : i + 1])
        outs.append(torch.stack(out_MK))
    return torch.cat(outs, dim=1) @ own["out.weight"].T


def _rotated(pos: OptionConfig, x_MK: Tensor) -> Tensor:
    """Each pair of features as a complex number, multiplied with one of its position."""
    if pos.name != "rope":
        return x_MK
    size = round(pos.fraction * x_MK.shape[1])
    x_MK, unchanged_MK = x_MK[:, :size], x_MK[:, size:]
    frequencies = pos.base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.arange(len(x_MK), dtype=torch.float64)[:, None] * frequencies
    turned = torch.complex(*x_MK.chunk(2, dim=1)) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag, unchanged_MK], dim=1)
