"""The matrices that map hidden states to hidden states."""

from __future__ import annotations

from torch import nn


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """The matrices in the blocks of a model, with the rows of those that are stacked in each.

    The embeddings, the output matrix and everything else outside of the blocks are not among them,
    nor are parameters of other than two dimensions. A weight that is one matrix has one number of
    rows; a layer with several declares `stacked_rows`, see `model.linear.Linear`.

    Args:
        model: a model with `blocks`; in any other, no matrix is known to be one of these.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Module):
        return {}
    found: dict[nn.Parameter, tuple[int, ...]] = {}
    for module in blocks.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 2 and not isinstance(module, nn.Embedding):
                stacked = getattr(module, "stacked_rows", None) if name == "weight" else None
                found[weight] = stacked or (weight.shape[0],)
    in_blocks = {id(module) for module in blocks.modules()}
    for module in model.modules():
        if id(module) not in in_blocks:
            for weight in module.parameters(recurse=False):
                found.pop(weight, None)
    return found
