"""Weight tying of the embedding table and the output matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from xftrain.model.linear import Linear


class MayTieHead(nn.Module):
    """A model with `embed` and `head`, which may share one weight."""

    embed: nn.Embedding
    head: Linear

    def tie_head(self) -> None:
        """Makes the output matrix share the embedding table."""
        self.head.weight = self.embed.weight

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads weights like torch, but a tied `head.weight` may be missing.

        A safetensors file holds a shared tensor once. `safetensors.torch.load_model` expects the
        missing key to be reported, and so calls this without `strict`.
        """
        is_tied = self.head.weight is self.embed.weight
        if strict and is_tied and "embed.weight" in state_dict and "head.weight" not in state_dict:
            state_dict = {**state_dict, "head.weight": state_dict["embed.weight"]}
        result = super().load_state_dict(state_dict, strict, assign)
        if is_tied:
            self.tie_head()  # `assign` breaks the tie
        return result
