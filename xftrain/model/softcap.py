"""Soft cap of attention scores, on top of any bias (Gemma 2, arXiv:2408.00118)."""

from __future__ import annotations

from dataclasses import replace

from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, BiasRecipe
from xftrain.model.layer_spec import built_bias


class SoftCapped:
    """A bias recipe whose scores are capped.

    Args:
        recipe: the bias recipe.
        softcap: scores become `softcap * tanh(score / softcap)` before the bias is added.
    """

    def __init__(self, recipe: BiasRecipe, softcap: float) -> None:
        self.recipe, self.softcap = recipe, softcap

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """The bias of one batch.

        Raises:
            ConfigError: the recipe caps scores itself, or does not return a bias of the batch.
        """
        bias = built_bias(self.recipe, num_heads, seqlens)
        if bias.softcap is not None:
            raise ConfigError(
                f"model.score_softcap={self.softcap:g} and model.bias, "
                f"{type(self.recipe).__name__}, which caps scores at {bias.softcap:g} itself: set "
                "model.score_softcap=null, or leave the cap out of the bias."
            )
        return replace(bias, softcap=self.softcap)
