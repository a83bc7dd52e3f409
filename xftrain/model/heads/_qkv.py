"""The projection to queries, keys and values that all head groupings share."""

from __future__ import annotations

from torch import Tensor, nn

from xftrain.errors import ConfigError
from xftrain.model.linear import Linear


class QKVProjection(nn.Module):
    """Projects to q, k and v by a single matmul.

    Args:
        dim: D.
        num_heads: H; D is H x K.
        num_kv_heads: G; H is a multiple of it.
        linear_bias: whether the projection adds a bias.
    """

    reads_weights = False

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, linear_bias: bool) -> None:
        super().__init__()
        if min(dim, num_heads, num_kv_heads) < 1 or dim % num_heads or num_heads % num_kv_heads:
            raise ConfigError(
                "model.dim must be a multiple of the number of query heads, and that of the number "
                f"of key/value heads, got {dim}, {num_heads} and {num_kv_heads}."
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = dim // num_heads
        self.qkv = Linear(dim, (num_heads + 2 * num_kv_heads) * self.head_dim, bias=linear_bias)
        heads = (num_heads, num_kv_heads, num_kv_heads)
        self.qkv.stacked_rows = tuple(number * self.head_dim for number in heads)

    def forward(self, x_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q_BMHK, k_BMGK and v_BMGK, as views of the result of the matmul."""
        heads = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        qkv = self.qkv(x_BMD).view(*x_BMD.shape[:2], sum(heads), self.head_dim)
        q_BMHK, k_BMGK, v_BMGK = qkv.split(heads, dim=2)
        return q_BMHK, k_BMGK, v_BMGK
