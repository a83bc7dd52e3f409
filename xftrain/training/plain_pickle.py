"""Reads the pickle inside a file of torch.save: plain values, with a description of each tensor.

Nothing is called and nothing imported: names in the pickle are looked up in a table. torch's own
reader for untrusted files calls more than xftrain saves: one that makes an array of any size, ones
for sparse, quantized and subclassed tensors. What is read here is what may be given to torch.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

_MAX_OPERATIONS = 5_000_000  # each makes one small object; a model of 7B has 60,000
_MAX_DEPTH = 64  # of values within values; Python's recursion ends at some hundred
_MAX_EXPANDED = 20_000_000  # values, where a list within two others counts twice
_STORAGES: dict[str, torch.dtype] = {  # torch's classes, each of one dtype
    "torch.storage UntypedStorage": torch.uint8,  # of the newer dtypes
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


class NotPlain(ValueError):
    """A pickle that is damaged, or holds more than plain values and dense tensors."""


@dataclass(frozen=True)
class DescribedTensor:
    """A tensor of the file, before anything is allocated for it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of its elements."""
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
    """What the pickle holds, with a `DescribedTensor` for each tensor.

    Args:
        pickle: of protocol 2, as torch.save writes it.
        storage_bytes: the size of each storage in the file, by its name.

    Raises:
        NotPlain: it is something else, or a tensor does not fit its storage.
    """
    reader = _Reader(storage_bytes)
    try:
        for number, (operation, argument, _) in enumerate(pickletools.genops(pickle)):
            if number > _MAX_OPERATIONS:
                raise NotPlain(f"it holds more than {_MAX_OPERATIONS:,} values")
            reader.take(operation.name, argument)
        content = reader.stack.pop()
    except NotPlain:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise NotPlain(f"its pickle is damaged, {type(error).__name__}: {error}") from error
    _check_extent(content, {}, depth=0)
    return content


class _Reader:
    """A pickle's stack machine, for the operations that torch.save makes use of."""

    def __init__(self, storage_bytes: Mapping[str, int]) -> None:
        self.stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        self._storage_bytes = storage_bytes

    def take(self, operation: str, argument: Any) -> None:
        """One operation."""
        if operation in _VALUES:
            self.stack.append(argument)
        elif operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation]())
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
        self._of(list, self.stack[-1]).append(value)

    def _appends(self, _: Any) -> None:
        values = self._above_mark()
        self._of(list, self.stack[-1]).extend(values)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put(key, value)

    def _setitems(self, _: Any) -> None:
        values = self._above_mark()
        for key, value in zip(values[::2], values[1::2], strict=True):
            self._put(key, value)

    def _put(self, key: Any, value: Any) -> None:
        if not isinstance(key, _KEYS):
            raise NotPlain(f"it has a key that is a {type(key).__name__}")
        self._of(dict, self.stack[-1])[key] = value

    def _of(self, kind: type[Any], value: Any) -> Any:
        if not isinstance(value, kind):
            raise NotPlain(f"its pickle adds to a {type(value).__name__}")
        return value

    def _global(self, name: str) -> None:
        if name not in _STORAGES and name not in _CALLS:
            _dtypes(name)
        self.stack.append(_Name(name))

    def _binpersid(self, _: Any) -> None:
        """A storage: its class, name, device, and number of elements."""
        kind, storage, name, device, count = self.stack.pop()
        dtype = _STORAGES[storage.text]
        right = kind == "storage" and type(name) is type(device) is str and type(count) is int
        if not right or count * dtype.itemsize != self._storage_bytes[name]:
            raise NotPlain(
                f"a tensor's storage is not of the {self._storage_bytes[name]:,} bytes there"
            )
        self.stack.append(_Storage(self._storage_bytes[name], dtype))

    def _reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _CALLS[self.stack[-1].text](*arguments)

    def _build(self, _: Any) -> None:
        """An attribute that state dicts of modules have."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict) or set(state) - {"_metadata"}:
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
    """A dense tensor, which has no more elements than its storage."""
    numbers = (offset, *shape, *strides)
    if hooks or any(type(number) is not int or number < 0 for number in numbers):
        raise NotPlain("a tensor has hooks, or no shape")
    tensor = DescribedTensor(shape, storage.dtype if dtype is None else _dtypes(dtype.text))
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    is_outside = tensor.num_bytes and (last + 1) * tensor.dtype.itemsize > storage.num_bytes
    # one number with a stride of 0 makes a tensor of terabytes
    if is_outside or tensor.num_bytes > storage.num_bytes:
        raise NotPlain(f"a tensor of shape {list(shape)} has {storage.num_bytes:,} bytes there")
    return tensor


def _parameter(data: Any, requires_grad: bool, hooks: Any) -> DescribedTensor:
    if hooks or not isinstance(data, DescribedTensor):
        raise NotPlain("a parameter has hooks, or is no tensor")
    return data


def _dtypes(name: str) -> torch.dtype:
    module, _, attribute = name.partition(" ")
    found = getattr(torch, attribute, None) if module == "torch" else None
    if not isinstance(found, torch.dtype):
        raise NotPlain(f"it holds more than plain values and tensors: {name.replace(' ', '.')}")
    return found


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise NotPlain(f"it has bytes encoded as {encoding!r}")
    return text.encode(encoding)


def _set(values: list[Any]) -> set[Any]:
    if not all(isinstance(value, _KEYS) for value in values):
        raise NotPlain("it has a set of other things than numbers and strings")
    return set(values)


def _check_extent(value: Any, known: dict[int, int], depth: int) -> int:
    """Counts the values within a value, and itself.

    One list within another, that twice within a third and so on soon takes for ever to go through.

    Args:
        value: of any kind.
        known: the counts of containers by their addresses.
        depth: values around it.
    """
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        if depth > _MAX_DEPTH:  # also where one is within itself
            raise NotPlain(f"it has values within values, more than {_MAX_DEPTH} of them")
        children = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_check_extent(child, known, depth + 1) for child in children)
    if known[id(value)] > _MAX_EXPANDED:
        raise NotPlain(f"it holds more than {_MAX_EXPANDED:,} values")
    return known[id(value)]


_KEYS = str | int | float | None  # of a dictionary; the hash of a tuple that is deep ends Python
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
    "torch._utils _rebuild_tensor_v3": _tensor,  # has the dtype besides
    "torch._utils _rebuild_parameter": _parameter,
    "torch Size": lambda numbers: tuple(numbers),
    "torch device": lambda kind, index=0: f"{kind}:{index}",
    "_codecs encode": _bytes,
    "__builtin__ set": _set,
}
