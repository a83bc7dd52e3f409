"""Multi-head attention (Vaswani et al., 2017, arXiv:1706.03762): a K/V head per query head.

q  0 1 2 3 4 5 6 7
kv 0 1 2 3 4 5 6 7
"""

from xftrain.model.heads._qkv import QKVProjection


class MHA(QKVProjection):
    """Projects to as many key/value heads as query heads: G = H."""

    def __init__(self, dim: int, num_heads: int, linear_bias: bool) -> None:
        super().__init__(dim, num_heads, num_heads, linear_bias)
