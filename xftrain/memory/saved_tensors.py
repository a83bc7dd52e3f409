"""Counts the bytes that code saves for its backward pass, from the autograd graph of its result.

Eager code saves all tensors in its graph. torch.compile saves fewer:

- outputs of element-wise operations, casts and norms are recomputed from their inputs, unless a
  matmul, or a function with its own backward such as attention, reads them;
- a tensor that is cast to a wider dtype for one of those is saved in its narrow dtype.

tests/memory compares these rules with torch's own partition into forward and backward.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
# Cheap operators in addition to those that torch tags as element-wise.
_CHEAP = {
    _aten._fused_rms_norm.default,
    _aten._to_copy.default,
    _aten._unsafe_view.default,
    _aten.cat.default,
    _aten.mean.dim,
    _aten.native_layer_norm.default,
}
_MATMULS = {f"{name}Backward0" for name in ("Mm", "Addmm", "Bmm", "Baddbmm", "Convolution")}


@dataclass(frozen=True)
class SavedBytes:
    """Bytes saved for the backward pass.

    Attributes:
        activations: bytes of all saved activations.
        casts: bytes of copies of weights in another dtype.
        largest: bytes of the largest activation.
    """

    activations: int
    casts: int
    largest: int


class SavedTensorRecorder(TorchDispatchMode):
    """Records for each tensor the tensors from which it was computed, while it is active.

    Args:
        weights: parameters, which are not counted, nor are views of them.
        shared: other tensors that are not counted, since code outside reads them too.
    """

    def __init__(self, weights: Iterable[Tensor], shared: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._weights = {_key(tensor) for tensor in weights}
        self._shared = {_key(tensor) for tensor in shared}
        self._tensors: dict[int, Tensor] = {}  # kept alive, so that no address is reused
        self._cheap: dict[int, list[int]] = {}  # output of a cheap operation -> its inputs
        self._cast: dict[int, int] = {}  # copy in another dtype -> its source

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls the operation and records its inputs and outputs."""
        result = func(*args, **(kwargs or {}))
        sources = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in sources:
            self._tensors.setdefault(_key(tensor), tensor)
        for tensor in tree_leaves(result):
            # an output with a known storage is a view, or was modified in place
            if not isinstance(tensor, Tensor) or _key(tensor) in self._tensors:
                continue
            self._tensors[_key(tensor)] = tensor
            if torch.Tag.pointwise in func.tags or func in _CHEAP:
                self._cheap[_key(tensor)] = [_key(source) for source in sources]
            if func is _aten._to_copy.default:
                self._cast[_key(tensor)] = _key(sources[0])
        return result

    def saved_bytes(self, result: Tensor | tuple[Tensor, ...], *, compiled: bool) -> SavedBytes:
        """Counts the bytes that the autograd graph of one or several results saves."""
        activations: dict[int, int] = {}
        casts: dict[int, int] = {}
        for tensor, is_read_by_matmul in _saved_tensors(result):
            self._tensors.setdefault(_key(tensor), tensor)
            keys = {_key(tensor)}
            if compiled:
                keys = {self._narrow(*keys)} if is_read_by_matmul else self._sources(*keys)
            for key in keys:
                if key in self._weights or key in self._shared:
                    continue
                counted = casts if self._cast.get(key) in self._weights else activations
                counted[key] = self._tensors[key].untyped_storage().nbytes()
        largest = max(activations.values(), default=0)
        return SavedBytes(sum(activations.values()), sum(casts.values()), largest)

    def _narrow(self, key: int) -> int:
        """The source of a copy in a wider dtype; any other tensor itself."""
        before = self._cast.get(key, key)
        is_wider = self._tensors[before].itemsize < self._tensors[key].itemsize
        return before if is_wider else key

    def _sources(self, key: int) -> set[int]:
        """The tensors from which a tensor is recomputed: no outputs of cheap operations."""
        if key not in self._cheap:
            return {key}
        return {source for input_key in self._cheap[key] for source in self._sources(input_key)}


def _saved_tensors(result: Tensor | tuple[Tensor, ...]) -> Iterator[tuple[Tensor, bool]]:
    """Yields each tensor in the graph, and whether a matmul or a custom function reads it."""
    todo, seen = [leaf.grad_fn for leaf in tree_leaves(result)], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [before for before, _ in node.next_functions]
        is_custom = isinstance(node, BackwardCFunction)
        names = (
            ["saved_tensors"] if is_custom else [n for n in dir(node) if n.startswith("_saved_")]
        )
        for leaf in tree_leaves([getattr(node, name) for name in names]):
            if isinstance(leaf, Tensor):
                yield leaf, is_custom or node.name() in _MATMULS


def _key(tensor: Tensor) -> int:
    """A key that is equal for all views of one storage."""
    return tensor.untyped_storage()._cdata
