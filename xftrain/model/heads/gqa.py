"""Grouped-query attention (Ainslie et al., 2023, arXiv:2305.13245): a K/V head per group.

q  0 1 2 3 4 5 6 7
kv 0 0 0 0 1 1 1 1        num_kv_heads: 2
"""

from xftrain.config.fields import PositiveInt
from xftrain.errors import ConfigError
from xftrain.model.heads._qkv import QKVProjection


class GQA(QKVProjection):
    """Projects to G key/value heads, where G divides H.

    Args:
        dim: D.
        num_heads: H.
        linear_bias: whether the projection adds a bias.
        num_kv_heads: G; must divide H. None is an eighth of H and at least 2, as in Llama.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        linear_bias: bool,
        *,
        num_kv_heads: PositiveInt | None = None,
    ) -> None:
        num_kv_heads = num_kv_heads or max(2, num_heads // 8)
        if num_heads % num_kv_heads:
            raise ConfigError(
                f"model.heads.num_kv_heads must divide model.num_heads = {num_heads}, got "
                f"{num_kv_heads}: set one that does, or use model.heads=mqa."
            )
        super().__init__(dim, num_heads, num_kv_heads, linear_bias)
