"""The keys and values of tokens that the model has read, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias
from xftrain.model.gpt import GPT
from xftrain.model.layer_spec import built_bias


def cacheable_bias(bias: AttnBias) -> AttnBias:
    """The same bias.

    Raises:
        ConfigError: scores of a new token depend on more than distances to earlier tokens.
    """
    if not bias.causal:
        raise ConfigError(
            "model.bias lets a token see later ones, so no text can be generated token by token: "
            "use a model with a causal bias."
        )
    if bias.additive_HMM is not None:
        raise ConfigError(
            "model.bias adds a tensor of the size of one batch, so it does not fit a text that "
            "grows token by token: describe the bias by window and slopes in AttnBias, as far as "
            "it is made of these."
        )
    return bias


@dataclass(frozen=True, eq=False)
class LayerCache:
    """The cache of one layer: a ring of slots for each row.

    The key of position p is in slot p modulo C. A layer with a window has no more slots than a
    query sees keys, so that a new key replaces the one that no query will see again.

    Attributes:
        bias: the attention bias of the layer: causal, with window, slopes, scale and soft cap.
        k_BCGK: keys.
        v_BCGK: values.
    """

    bias: AttnBias
    k_BCGK: Tensor
    v_BCGK: Tensor

    @property
    def num_slots(self) -> int:
        """C."""
        return self.k_BCGK.shape[1]

    @property
    def num_bytes(self) -> int:
        """Size of keys and values."""
        return self.k_BCGK.nbytes + self.v_BCGK.nbytes

    def fill(self, row: int, k_MGK: Tensor, v_MGK: Tensor) -> None:
        """Stores the keys and values of a row's first M positions."""
        num_positions, num_slots = k_MGK.shape[0], self.num_slots
        first = max(0, num_positions - num_slots)
        slots = torch.arange(first, num_positions, device=k_MGK.device) % num_slots
        self.k_BCGK[row, slots] = k_MGK[first:].to(self.k_BCGK.dtype)
        self.v_BCGK[row, slots] = v_MGK[first:].to(self.v_BCGK.dtype)


class Cache:
    """The caches of all layers of a model.

    Args:
        model: the model, on its device.
        num_rows: B.
        num_positions: maximum number of positions of a row.

    Attributes:
        num_rows: B.
        layers: the cache of each layer.
    """

    def __init__(self, model: GPT, num_rows: int, num_positions: int) -> None:
        self.num_rows = num_rows
        device, dtype = model.compute_device_dtype()
        self.layers: list[LayerCache] = []
        for spec, block in zip(model.specs, model.blocks, strict=True):
            bias = cacheable_bias(built_bias(spec.bias, model.num_heads, None))
            bias = bias.simplified(num_positions)
            num_slots = min(num_positions, bias.window or num_positions)
            num_kv_heads: int = block.heads.num_kv_heads  # type: ignore[union-attr, assignment]
            shape = (num_rows, num_slots, num_kv_heads, model.head_dim)
            # zeros, since a slot that no key has filled is multiplied by a weight of 0
            k_BCGK, v_BCGK = (torch.zeros(shape, dtype=dtype, device=device) for _ in "kv")
            self.layers.append(LayerCache(bias, k_BCGK, v_BCGK))

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values of all layers."""
        return sum(layer.num_bytes for layer in self.layers)
