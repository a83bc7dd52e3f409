"""One step of generation: reads one token of each row, and returns the logits of the next one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xftrain.generation.cache import Cache, LayerCache
from xftrain.generation.fused_block import fused_blocks
from xftrain.interfaces import Attention
from xftrain.kernels.decode_attention import decode_attention
from xftrain.model.gpt import GPT


class _Layer(NamedTuple):
    cache: LayerCache
    slopes_H: Tensor | None


class DecodeStep:
    """Reads one token of each row; no step waits for the device, and all have the same sizes.

    So a CUDA graph can capture one. Rows are passed to the model as the positions of a single row,
    since everything but attention acts on each position alone.

    Args:
        model: the model, in evaluation mode.
        cache: its cache, which holds all earlier positions.
    """

    def __init__(self, model: GPT, cache: Cache) -> None:
        self._model = model
        self._layers = [_Layer(layer, _slopes(layer)) for layer in cache.layers]
        self._fused = fused_blocks(model, cache.num_rows)

    def __call__(self, tokens_B: Tensor, positions_B: Tensor) -> Tensor:
        """The logits [B, V] of the tokens that follow.

        Args:
            tokens_B: int64 tokens.
            positions_B: their int64 positions.
        """

        def attention(q_1BHK: Tensor, k_1BGK: Tensor, v_1BGK: Tensor, layer: _Layer) -> Tensor:
            cached = layer.cache
            dtype = cached.k_BCGK.dtype
            out_BHK = decode_attention(
                q_1BHK[0].to(dtype),
                k_1BGK[0].to(dtype),
                v_1BGK[0].to(dtype),
                cached.k_BCGK,
                cached.v_BCGK,
                positions_B,
                layer.slopes_H,
                scale=_scale(cached, q_1BHK),
                softcap=cached.bias.softcap,
            )
            return out_BHK[None]

        x_1BD = self._hidden(tokens_B[None], positions_B[None], attention)
        return self._model.logits(x_1BD[0])

    def _hidden(self, tokens_1B: Tensor, positions_1B: Tensor, attention: Attention) -> Tensor:
        """The normalized hidden states [1, B, D]."""
        model = self._model
        if self._fused is None:
            return model.hidden(tokens_1B, positions_1B, self._layers, attention)
        embedded_1BD = model.embed.weight[tokens_1B]  # faster than nn.Embedding for a few tokens
        x_1BD = model.first_input(embedded_1BD, positions_1B, eager=True)
        positions = model.prepared_positions(positions_1B)
        for block, layer, prepared in zip(self._fused, self._layers, positions, strict=True):
            x_1BD = block(x_1BD, attention, layer, prepared)
        return model.norm.forward(x_1BD)


def _slopes(layer: LayerCache) -> Tensor | None:
    slopes = layer.bias.slopes
    if slopes is None:
        return None
    return torch.tensor(slopes, dtype=torch.float32, device=layer.k_BCGK.device)


def _scale(layer: LayerCache, q: Tensor) -> float:
    return q.shape[-1] ** -0.5 if layer.bias.scale is None else layer.bias.scale
