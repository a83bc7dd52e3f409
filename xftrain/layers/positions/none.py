"""No position encoding: the causal mask or ALiBi alone tells positions apart."""

from torch import Tensor, nn


class None_(nn.Module):
    """Changes nothing.

    Args:
        dim: D; unused here.
        head_dim: K; unused here.
    """

    def __init__(self, dim: int, head_dim: int) -> None:
        super().__init__()
        self.max_positions: int | None = None  # any length will do

    def embed(self, x_BMD: Tensor, positions_1M: Tensor) -> Tensor:
        """Token embeddings as they are."""
        return x_BMD

    def prepare(self, positions_1M: Tensor) -> None:
        """Nothing to prepare."""
        return

    @staticmethod
    def apply_to(q_BMHK: Tensor, k_BMGK: Tensor, prepared: None) -> tuple[Tensor, Tensor]:
        """q and k as they are."""
        return q_BMHK, k_BMGK
