"""One layer of the GPT: attention and a feed-forward, each added to the residual stream."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xftrain.errors import ConfigError
from xftrain.interfaces import Attention, PositionEncoding
from xftrain.model.linear import Linear


class RecomputePlan(NamedTuple):
    """Which activations are recomputed in the backward pass instead of being saved.

    Attributes:
        blocks: the first `blocks` blocks are recomputed, each from its input.
        ffns: in the first `ffns` blocks, the feed-forward and its norm are recomputed, unless the
            whole block is.
    """

    blocks: int = 0
    ffns: int = 0


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + ffn(norm(x))."""

    reads_weights = False

    def __init__(
        self,
        heads: nn.Module,
        ffn: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        pos: PositionEncoding,
        *,
        dim: int,
        linear_bias: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm_attn, self.norm_ffn = norms
        self.heads, self.ffn = heads, ffn
        self.apply_positions = pos.apply_to
        self.out = Linear(dim, dim, bias=linear_bias)
        self.dropout = dropout

    def forward(
        self,
        x_BMD: Tensor,
        attention: Attention,
        handle: Any,
        positions: Any,
        recomputes_ffn: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The residual stream after this layer, and the auxiliary loss of its feed-forward or None.

        Args:
            x_BMD: the residual stream.
            attention: the backend, or a function that replaces it.
            handle: handle that the backend prepared for this layer and batch.
            positions: the positions that this layer's encoding prepared for this batch.
            recomputes_ffn: whether to recompute the feed-forward in the backward pass.
        """
        q_BMHK, k_BMGK, v_BMGK = self.heads(self.norm_attn(x_BMD))
        q_BMHK, k_BMGK = self.apply_positions(q_BMHK, k_BMGK, positions)
        out_BMHK = attention(q_BMHK, k_BMGK, v_BMGK, handle)
        x_BMD = x_BMD + self._drop(self.out(out_BMHK.flatten(2)))
        if recomputes_ffn:
            out = checkpoint(self.feed_forward, x_BMD, use_reentrant=False)
        else:
            out = self.feed_forward(x_BMD)
        if not isinstance(out, tuple):
            return x_BMD + self._drop(out)
        ffn_BMD, aux = self._checked(out)
        return x_BMD + self._drop(ffn_BMD), aux

    def feed_forward(self, x_BMD: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The feed-forward of norm(x), before dropout; a pair if it has an auxiliary loss."""
        out: Tensor | tuple[Tensor, Tensor] = self.ffn(self.norm_ffn(x_BMD))
        return out

    def _checked(self, pair: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if len(pair) != 2 or pair[1].dim() != 0 or not pair[1].is_floating_point():
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in pair)
            raise ConfigError(
                f"model.ffn: {type(self.ffn).__name__} must return a tensor, or a pair of it and "
                f"its auxiliary loss, a floating-point scalar; got shapes {shapes}."
            )
        return pair[0], pair[1]

    def _drop(self, x_BMD: Tensor) -> Tensor:
        return F.dropout(x_BMD, self.dropout, self.training) if self.dropout else x_BMD
