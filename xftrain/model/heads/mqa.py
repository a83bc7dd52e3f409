"""Multi-query attention (Shazeer, 2019, arXiv:1911.02150): one K/V head for all query heads.

q  0 1 2 3 4 5 6 7
kv 0 0 0 0 0 0 0 0
"""

from xftrain.model.heads._qkv import QKVProjection


class MQA(QKVProjection):
    """Projects to a single key/value head: G = 1."""

    def __init__(self, dim: int, num_heads: int, linear_bias: bool) -> None:
        super().__init__(dim, num_heads, 1, linear_bias)
