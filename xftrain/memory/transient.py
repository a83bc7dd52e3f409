"""The temporary memory of attention: declared by the backend, or measured on fake tensors."""

from __future__ import annotations

import logging
import weakref
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xftrain.errors import first_line
from xftrain.interfaces import Attention, AttnCall, Backend
from xftrain.memory.saved_tensors import SavedTensorRecorder

log = logging.getLogger(__name__)

Source = Literal["declared", "measured", "assumed"]


class Transient(NamedTuple):
    """Temporary bytes of attention, beside the gradient of its largest saved tensor.

    Attributes:
        num_bytes: the bytes.
        source: `declared` by the backend, `measured` on fake tensors, or `assumed` to be another
            tensor as large as the largest one that the backend saves.
    """

    num_bytes: int
    source: Source


def attention_transient(backend: Backend, call: AttnCall) -> Transient:
    """The temporary bytes of a backend for a call; the caller has turned on fake tensors."""
    if (declared := backend.transient_bytes(call)) is not None:
        return Transient(declared, "declared")
    try:
        return Transient(_measured(backend, call), "measured")
    except Exception as error:  # a user's own kernel may raise anything
        log.debug("memory: attention is not measured: %s", first_line(error))
    attention, handle = attention_on_fake_tensors(backend, call)
    return Transient(_largest_saved(attention(*_inputs(call), handle)), "assumed")


def attention_on_fake_tensors(backend: Backend, call: AttnCall) -> tuple[Attention, Any]:
    """The backend's stand-in for fake tensors, or the backend itself, with its handle."""
    if (stand_in := backend.stand_in(call)) is not None:
        return stand_in, None
    return backend, backend.prepare(*call)


def _measured(backend: Backend, call: AttnCall) -> int:
    """The peak of a forward and a backward pass above the saved tensors and the largest of them.

    The gradient of the output is not included.
    """
    q, k, v = _inputs(call)
    handle = backend.prepare(*call)
    with _AllocatedBytes() as allocated:
        out = backend(q, k, v, handle)
        forward = allocated.peak - allocated.current
        largest = _largest_saved(out)
        grad = torch.empty_like(out)
        before = allocated.peak = allocated.current
        with torch.autocast(call.device.type, enabled=False):
            torch.autograd.grad(out, (q, k, v), grad)
        backward = allocated.peak - before
    if backward < min(q.nbytes, k.nbytes):  # at least the gradients of q, k and v are allocated
        raise RuntimeError("the backward pass allocates no gradients on fake tensors")
    return max(0, max(forward, backward) - largest)


def _inputs(call: AttnCall) -> tuple[Tensor, Tensor, Tensor]:
    _, shape, dtype, device = call

    def empty(heads: int) -> Tensor:
        sizes = (shape.B, shape.M, heads, shape.K)
        return torch.empty(sizes, dtype=dtype, device=device, requires_grad=True)

    return empty(shape.H), empty(shape.G), empty(shape.G)


def _largest_saved(out: Tensor) -> int:
    """The bytes of the largest tensor that is saved for the backward pass."""
    return SavedTensorRecorder(()).saved_bytes(out, compiled=False).largest


class _AllocatedBytes(TorchDispatchMode):
    """Sums the bytes of all tensors that are allocated while it is active, until they are freed.

    Attributes:
        current: bytes that are allocated now.
        peak: the maximum of `current`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._allocated: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls the operation and adds what it allocates."""
        result = func(*args, **(kwargs or {}))
        before = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            # others are views, or were modified in place
            if storage._cdata not in before and storage._cdata not in self._allocated:
                self._add(storage)
        self.peak = max(self.peak, self.current)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()

        def subtract(_: object) -> None:
            del self._allocated[key]
            self.current -= num_bytes

        self.current += num_bytes
        self._allocated[key] = weakref.ref(storage, subtract)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
