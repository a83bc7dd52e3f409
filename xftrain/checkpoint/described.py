"""Compares what torch has read from a checkpoint file with what was checked before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xftrain.checkpoint.plain_pickle import DescribedTensor
from xftrain.checkpoint.plain_values import NotPlain

_PLAIN = (str, bytes, int, float, bool, type(None))


def check_loaded(loaded: Any, described: Any) -> None:
    """Raises an error if torch has read anything other than what the description holds.

    Args:
        loaded: what `torch.load` returned.
        described: description of the same file, see `file_format.described_content`.

    Raises:
        NotPlain: a name, a value, or the shape or dtype of a tensor differs.
    """
    if not _is_same(loaded, described, set()):
        raise NotPlain("torch reads something else from it than its directory describes")


def _is_same(loaded: Any, described: Any, known: set[tuple[int, int]]) -> bool:
    """Whether two values are equal; `known` holds the addresses of pairs already compared."""
    if isinstance(described, DescribedTensor):
        is_tensor = isinstance(loaded, Tensor) and tuple(loaded.shape) == described.shape
        return is_tensor and loaded.dtype == described.dtype
    if isinstance(described, _PLAIN):
        if isinstance(loaded, torch.device):
            return f"{loaded.type}:{loaded.index or 0}" == described
        return type(loaded) is type(described) and (loaded == described or loaded != loaded)
    if isinstance(described, set):
        return isinstance(loaded, set) and len(loaded) == len(described)
    if not isinstance(described, dict | list | tuple):
        return not isinstance(loaded, Tensor)  # a dtype
    if (id(loaded), id(described)) in known:
        return True
    known.add((id(loaded), id(described)))
    kind = next(kind for kind in (dict, list, tuple) if isinstance(described, kind))
    if not isinstance(loaded, kind) or len(loaded) != len(described):
        return False
    ours, theirs = (
        [*x.keys(), *x.values()] if isinstance(x, dict) else x for x in (loaded, described)
    )
    return all(_is_same(a, b, known) for a, b in zip(ours, theirs, strict=True))
