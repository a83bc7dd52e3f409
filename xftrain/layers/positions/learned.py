"""Learned absolute positions, added to the token embedding (GPT-2)."""

from torch import Tensor, nn

from xftrain.fields import PositiveInt


class Learned(nn.Module):
    """One vector per position.

    Args:
        dim: D.
        head_dim: K; unused here.
        max_positions: longest document.
    """

    changes_embeddings = True

    def __init__(self, dim: int, head_dim: int, *, max_positions: PositiveInt) -> None:
        super().__init__()
        self.max_positions: int | None = max_positions
        self.table = nn.Embedding(max_positions, dim)

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Token embeddings with the positions' vectors added."""
        return x_BMD + self.table(positions_1M)

    def prepare(self, positions_1M: Tensor) -> None:
        """Nothing is left to do in the layers."""
        return

    @staticmethod
    def apply_to(q_BMHK: Tensor, k_BMGK: Tensor, prepared: None) -> tuple[Tensor, Tensor]:
        """q and k as they are."""
        return q_BMHK, k_BMGK
