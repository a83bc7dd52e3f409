"""No position encoding: the causal mask or ALiBi alone tells positions apart."""

from torch import Tensor, nn


class None_(nn.Module):
    """Leaves embeddings, queries and keys unchanged.

    Args:
        dim: D; unused here.
        head_dim: K; unused here.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.max_positions: int | None = None  # no limit

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Returns the token embeddings unchanged."""
        return x_BMD

    def prepare(self, positions_1M: Tensor) -> None:
        """Returns None, since the layers have nothing to apply."""
        return

    @staticmethod
    def apply_to(q_BMHK: Tensor, k_BMGK: Tensor, prepared: None) -> tuple[Tensor, Tensor]:
        """Returns q and k unchanged."""
        return q_BMHK, k_BMGK
