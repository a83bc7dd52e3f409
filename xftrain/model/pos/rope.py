"""Rotary position embedding (Su et al., 2021, arXiv:2104.09864).

The pairs of features are (i, i + K/2), as in GPT-NeoX and in Hugging Face's Llama.
"""

import torch
from torch import Tensor, nn

from xftrain.config.fields import Fraction, PositiveFloat
from xftrain.errors import ConfigError


class RoPE(nn.Module):
    """Rotates pairs of features of q and k by the angle position x frequency.

    Args:
        dim: D; unused here.
        head_dim: K; even.
        base: wavelengths are from 2 pi to 2 pi x base.
        fraction: the share of the K features that are rotated, the first ones; the others have no
            positions (GPT-NeoX; Black et al., 2022, arXiv:2204.06745). The base is that of the
            rotated features.

    Attributes:
        rotary_dim: number of rotated features.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int,
        *,
        base: PositiveFloat = 10000.0,
        fraction: Fraction = 1.0,
    ) -> None:
        super().__init__()
        self.max_positions: int | None = None  # no limit
        if head_dim % 2:
            raise ConfigError(
                "model.pos=rope rotates pairs of features, so model.dim / model.num_heads must be "
                f"even, got {head_dim}: change one of the two."
            )
        self.head_dim, self.base, self.fraction = head_dim, base, fraction
        self.rotary_dim = int(head_dim * fraction)
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(
                "model.pos.fraction must give an even number of rotated features, at least 2, got "
                f"{fraction} of {head_dim}, which is {self.rotary_dim}: set one that does, as "
                f"{2 * max(1, self.rotary_dim // 2) / head_dim:g}, or use model.pos=none."
            )

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Returns the token embeddings unchanged."""
        return x_BMD

    def prepare(self, positions_1M: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cos and sin of R rotated features in float32, [1, M, 1, R/2], once per batch."""
        # computed on the device, as a copy from the host would wait for the device and could not be
        # captured in a CUDA graph; in float64, in which pow is equal on all devices
        exponents = torch.arange(
            0, self.rotary_dim, 2, dtype=torch.float64, device=positions_1M.device
        )
        frequencies = torch.pow(self.base, -exponents / self.rotary_dim).float()
        angles = positions_1M[..., None, None].float() * frequencies
        return angles.cos(), angles.sin()

    @staticmethod
    def apply_to(
        q_BMHK: Tensor, k_BMGK: Tensor, prepared: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns q and k with each pair of features rotated."""
        return rotate(q_BMHK, prepared), rotate(k_BMGK, prepared)


def rotate(x_BMHK: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Returns x with each pair of its first features rotated, in the dtype of x.

    Args:
        x_BMHK: queries or keys.
        rotation: cos and sin, of half as many features as are rotated.
    """
    cos, sin = rotation
    rotary_dim = 2 * cos.shape[-1]
    if rotary_dim < x_BMHK.shape[-1]:
        rotated = rotate(x_BMHK[..., :rotary_dim], rotation)
        return torch.cat([rotated, x_BMHK[..., rotary_dim:]], dim=-1)
    wide = torch.promote_types(x_BMHK.dtype, torch.float32)
    first, second = x_BMHK.to(wide).chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x_BMHK.dtype)
