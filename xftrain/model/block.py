"""One layer of the GPT: attention and a feed-forward, each added to the residual stream."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from xftrain.errors import ConfigError
from xftrain.interfaces import Attention, PositionEncoding
from xftrain.model.linear import Linear
from xftrain.model.norm.rmsnorm import RMSNorm

_EPS = 1e-5  # of the norms of q and k, if the norm of the model has none


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
    """Computes x + attention(norm(x)), then x + ffn(norm(x)).

    Args:
        heads: projection to q, k, v.
        ffn: feed-forward.
        norms: the norms before attention and feed-forward.
        pos: position encoding.
        dim: D.
        linear_bias: whether the output projection of attention adds a bias.
        dropout: dropout probability of the outputs of attention and feed-forward.
        qk_norm_dim: K to normalize each query and key head by its root mean square, with one
            learned scale of K numbers for queries and one for keys (QK-norm; Henry et al., 2020,
            arXiv:2010.04245); None leaves them as they are.
    """

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
        qk_norm_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.norm_attn, self.norm_ffn = norms
        self.heads, self.ffn = heads, ffn
        self.norm_q: nn.Module | None = None
        self.norm_k: nn.Module | None = None
        if qk_norm_dim is not None:
            eps = getattr(self.norm_attn, "eps", None)  # a norm of the user's may have any
            eps = eps if isinstance(eps, int | float) and eps > 0 else _EPS
            self.norm_q, self.norm_k = (RMSNorm(qk_norm_dim, False, eps=eps) for _ in "qk")
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
        q_BMHK, k_BMGK = self.encode_positions(q_BMHK, k_BMGK, positions)
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

    def encode_positions(
        self, q_BMHK: Tensor, k_BMGK: Tensor, positions: Any
    ) -> tuple[Tensor, Tensor]:
        """The queries and keys, normalized if the layer has QK-norm, with positions encoded."""
        if self.norm_q is not None and self.norm_k is not None:
            q_BMHK, k_BMGK = self.norm_q(q_BMHK), self.norm_k(k_BMGK)
        return self.apply_positions(q_BMHK, k_BMGK, positions)

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
