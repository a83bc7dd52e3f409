"""Default inner widths of feed-forward layers."""


def plain_width(dim: int) -> int:
    """4 x dim (Vaswani et al., 2017)."""
    return 4 * dim


def gated_width(dim: int) -> int:
    """8/3 x dim, which gives three matrices the size of plain ones' two, to a multiple of 64."""
    return -(-8 * dim // 3 // 64) * 64
