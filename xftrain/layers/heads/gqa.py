"""Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245): a K/V head per group.

q  0 1 2 3 4 5 6 7
kv 0 0 0 0 1 1 1 1        num_kv_heads: 2
"""

from xftrain.fields import PositiveInt
from xftrain.layers.qkv import QKVProjection


class GQA(QKVProjection):
    """1 < G < H.

    Args:
        dim: D.
        num_heads: H.
        linear_bias: whether the projection adds a bias.
        num_kv_heads: G; must divide H.
    """

    def __init__(
        self, dim: int, num_heads: int, linear_bias: bool, *, num_kv_heads: PositiveInt = 2
    ) -> None:
        super().__init__(dim, num_heads, num_kv_heads, linear_bias)
