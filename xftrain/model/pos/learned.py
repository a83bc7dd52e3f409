"""Learned absolute positions, added to the token embedding (GPT-2)."""

from torch import Tensor, nn

from xftrain.config.fields import PositiveInt


class Learned(nn.Module):
    """Adds one learned vector per position to the token embedding.

    Args:
        dim: D.
        head_dim: K; unused here.
        max_positions: maximum length of a document.
    """

    changes_embeddings = True

    def __init__(self, dim: int, head_dim: int, *, max_positions: PositiveInt) -> None:
        super().__init__()
        self.max_positions: int | None = max_positions
        self.table = nn.Embedding(max_positions, dim)

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Adds the vectors of the positions to the token embeddings."""
        return x_BMD + self.table(positions_1M)

    def prepare(self, positions_1M: Tensor) -> None:
        """Returns None, since the layers have nothing to apply."""
        return

    @staticmethod
    def apply_to(q_BMHK: Tensor, k_BMGK: Tensor, prepared: None) -> tuple[Tensor, Tensor]:
        """Returns q and k unchanged."""
        return q_BMHK, k_BMGK
