"""Reads the pickle in a file of torch.save: plain values, and a description of each tensor.

The pickle cannot call or import anything: its names are looked up in a table. torch's own reader
for untrusted files allows more calls than xftrain needs, among them arrays of any size, and sparse,
quantized and subclassed tensors. Only a file that passes this reader is given to torch.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from xftrain.checkpoint.plain_values import (
    CONTAINER_BYTES,
    NotPlain,
    check_expanded_size,
    check_key,
    max_expanded_bytes,
)

_MAX_OPERATIONS = 1_000_000  # each creates one small object; a model of 7B has 60,000
_MAX_DIMENSIONS = 64  # torch's limit
_STORAGES: dict[str, torch.dtype] = {  # torch's classes, each of one dtype
    "torch.storage UntypedStorage": torch.uint8,  # used for newer dtypes
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch ComplexFloatStorage": torch.complex64,
    "torch ComplexDoubleStorage": torch.complex128,
}


@dataclass(frozen=True)
class DescribedTensor:
    """The description of a tensor in the file, for which no memory is allocated."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """The size of the elements in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Name:
    """A global name, as `torch FloatStorage`."""

    text: str


@dataclass(frozen=True)
class _Storage:
    num_bytes: int
    dtype: torch.dtype


def read_plain_pickle(pickle: bytes, storage_bytes: Mapping[str, int]) -> Any:
    """The content of the pickle, with a `DescribedTensor` for each tensor.

    Args:
        pickle: pickle of protocol 2, as torch.save writes it.
        storage_bytes: size of each storage in the file, by name.

    Raises:
        NotPlain: it holds anything else, or a tensor does not fit its storage.
    """
    reader = _Reader(storage_bytes, len(pickle))
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
            if number > _MAX_OPERATIONS:
                raise NotPlain(f"it holds more than {_MAX_OPERATIONS:,} values")
            reader.execute(operation.name, argument)
        content = reader.stack.pop()
    except NotPlain:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise NotPlain(f"its pickle is damaged, {type(error).__name__}: {error}") from error
    check_expanded_size(content, len(pickle))
    return content


class _Reader:
    """The stack machine of pickle, limited to the operations that torch.save writes."""

    def __init__(self, storage_bytes: Mapping[str, int], num_bytes: int) -> None:
        self.stack: list[Any] = []
        self._num_operations, self._num_bytes = 0, num_bytes
        self._num_containers, self._max_containers = (
            0,
            max_expanded_bytes(num_bytes) // CONTAINER_BYTES,
        )
        # the contents of objects created by calls
        self._num_made: dict[type[Any], int] = {bytes: 0, set: 0, tuple: 0}
        self._marked: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._storage_bytes = storage_bytes

    def execute(self, operation: str, argument: Any) -> None:
        """Executes one operation."""
        self._num_operations += 1
        if operation in _VALUES:
            self.stack.append(argument)
        elif operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation]())
            self._num_containers += operation in ("EMPTY_LIST", "EMPTY_DICT")
            if self._num_containers > self._max_containers:
                raise NotPlain(f"it holds more than {self._max_containers:,} lists and mappings")
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif operation in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif operation not in ("PROTO", "STOP"):
            getattr(self, f"_{operation.lower()}", self._unknown)(argument)

    def _unknown(self, _: Any) -> None:
        raise NotPlain("its pickle has operations that torch.save does not write")

    def _mark(self, _: Any) -> None:
        self._marked.append(self.stack)
        self.stack = []

    def _above_mark(self) -> list[Any]:
        above, self.stack = self.stack, self._marked.pop()
        return above

    def _tuple(self, _: Any) -> None:
        values = tuple(self._above_mark())
        self.stack.append(values)

    def _append(self, _: Any) -> None:
        value = self.stack.pop()
        self._checked(list, self.stack[-1]).append(value)

    def _appends(self, _: Any) -> None:
        values = self._above_mark()
        self._checked(list, self.stack[-1]).extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._insert(key, value)

    def _setitems(self, _: Any) -> None:
        values = self._above_mark()
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._insert(key, value)

    def _insert(self, key: Any, value: Any) -> None:
        check_key(key)
        self._checked(dict, self.stack[-1])[key] = value

    def _checked(self, kind: type[Any], value: Any) -> Any:
        if not isinstance(value, kind):
            raise NotPlain(f"its pickle adds to a {type(value).__name__}")
        return value

    def _global(self, name: str) -> None:
        if name not in _STORAGES and name not in _CALLS:
            _dtype_named(name)
        self.stack.append(_Name(name))

    def _binpersid(self, _: Any) -> None:
        """Reads a storage: its class, name, device, and number of elements."""
        kind, storage, name, device, count = self.stack.pop()
        if not (type(kind) is type(name) is type(device) is str and type(count) is int):
            raise NotPlain("a tensor's storage is not described as torch.save does")
        dtype = _STORAGES[storage.text]
        if kind != "storage" or count * dtype.itemsize != self._storage_bytes[name]:
            raise NotPlain(
                f"a tensor's storage is not of the {self._storage_bytes[name]:,} bytes in the file"
            )
        self.stack.append(_Storage(self._storage_bytes[name], dtype))

    def _reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        made = _CALLS[self.stack[-1].text](*arguments)
        if type(made) in self._num_made:
            # torch.save writes every call in full; reused arguments could multiply the results
            self._num_made[type(made)] += len(made)
            limit = self._num_bytes if isinstance(made, bytes) else self._num_operations
            if self._num_made[type(made)] > limit:
                raise NotPlain("the calls in its pickle create more values than it holds")
        self.stack[-1] = made

    def _build(self, _: Any) -> None:
        """Accepts `_metadata`, the only attribute that state dicts of modules have."""
        state = self.stack.pop()
        self._checked(OrderedDict, self.stack[-1])
        if len(self._checked(dict, state)) > ("_metadata" in state):
            raise NotPlain("it sets attributes of an object")


def _tensor(
    storage: _Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: bool,
    hooks: Any,
    dtype: _Name | None = None,
) -> DescribedTensor:
    """Describes a dense tensor, after checking that it fits into its storage."""
    if len(shape) > _MAX_DIMENSIONS or len(strides) > _MAX_DIMENSIONS:
        raise NotPlain(f"a tensor has more than {_MAX_DIMENSIONS} dimensions")
    numbers = (offset, *shape, *strides)
    if hooks or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
        raise NotPlain("a tensor has hooks, or no shape")
    tensor = DescribedTensor(shape, storage.dtype if dtype is None else _dtype_named(dtype.text))
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    is_outside = tensor.num_bytes and (last + 1) * tensor.dtype.itemsize > storage.num_bytes
    # a stride of 0 could turn one element into a tensor of terabytes
    if is_outside or tensor.num_bytes > storage.num_bytes:
        raise NotPlain(
            f"a tensor of shape {list(shape)} does not fit its {storage.num_bytes:,} bytes"
        )
    return tensor


def _parameter(data: Any, requires_grad: bool, hooks: Any) -> DescribedTensor:
    if hooks or not isinstance(data, DescribedTensor):
        raise NotPlain("a parameter has hooks, or is no tensor")
    return data


def _dtype_named(name: str) -> torch.dtype:
    module, _, attribute = name.partition(" ")
    found = vars(torch).get(attribute) if module == "torch" else None
    if not isinstance(found, torch.dtype):
        raise NotPlain(f"it holds more than plain values and tensors: {name.replace(' ', '.')}")
    return found


def _bytes(text: str, encoding: str) -> bytes:
    if type(text) is not str or type(encoding) is not str or encoding != "latin1":
        raise NotPlain("it has bytes in another encoding than latin1")
    return text.encode(encoding)


def _size(numbers: Any) -> tuple[Any, ...]:
    """Returns a shape; a string would become a tuple of 45 times its size."""
    if type(numbers) is not tuple or len(numbers) > _MAX_DIMENSIONS:
        raise NotPlain("it has a shape that torch.save does not write")
    return numbers


def _set(values: list[Any]) -> set[Any]:
    if type(values) is not list:
        raise NotPlain("it has a set that torch.save does not write")
    for value in values:
        check_key(value)
    return set(values)


def _device(kind: str, index: int = 0) -> str:
    if type(kind) is not str or type(index) is not int:
        raise NotPlain("it has a device that is not described as torch.save does")
    return f"{kind}:{index}"


_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda: OrderedDict(),
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor,  # also has the dtype
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": _size,
    "torch device": _device,
    "_codecs encode": _bytes,
    "__builtin__ set": _set,
}
