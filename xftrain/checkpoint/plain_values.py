"""Limits on plain values from untrusted files, so that traversing and showing them is cheap."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

_MAX_DEPTH = 64  # maximum nesting; Python's recursion limit is near 1000
_MAX_INTEGER = 2**60  # maximum key; larger integers may share one hash and make dictionaries slow
# The expanded values of a pickle may take at most this many bytes plus this multiple of its size; a
# value in two containers counts twice, since any value may be converted to text for a message.
_EXTRA_BYTES, _MAX_FACTOR = 16 << 20, 8
_MAX_NUMBER = 2**62
_MAX_COUNT = 2**53  # steps, batches or tokens; no run has more
CONTAINER_BYTES = 64  # bytes of an empty list or dictionary
MAX_TIME_NS = 2**62 - 1  # later than any time in nanoseconds
_VALUE_BYTES = 8  # estimated bytes of a value without its text; at least one byte in a pickle
_KEY_TYPES = (
    str | int | float | None
)  # types of keys; hashing a deeply nested tuple would crash Python


class NotPlain(ValueError):
    """A pickle that is damaged, or holds more than plain values and dense tensors."""


def is_count(value: Any) -> bool:
    """Whether a value is an integer from 0 to the maximum count."""
    return type(value) is int and 0 <= value < _MAX_COUNT


def is_time(value: Any) -> bool:
    """Whether a value is a valid time in nanoseconds."""
    return type(value) is int and 0 <= value <= MAX_TIME_NS


def is_number(value: Any) -> bool:
    """Whether a value is an integer that is not too large, or a float other than NaN."""
    if type(value) is int:
        return abs(value) < _MAX_NUMBER
    return type(value) is float and not math.isnan(value)


def check_key(value: Any) -> None:
    """Refuses dictionary keys and set members that are slow to hash."""
    if not isinstance(value, _KEY_TYPES):
        raise NotPlain(f"it has a key that is a {type(value).__name__}")
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise NotPlain(f"it has a key that is an integer above {_MAX_INTEGER:,}")


def max_expanded_bytes(num_pickled: int) -> int:
    """The limit for the bytes of all values of a pickle of this size."""
    return _EXTRA_BYTES + _MAX_FACTOR * num_pickled


def check_expanded_size(value: Any, num_pickled: int) -> None:
    """Refuses a value that, fully expanded, is many times larger than its pickle.

    A list that holds another list twice, which holds a third one twice, and so on, takes
    exponential time to traverse. A list that holds one long text a thousand times is slow to show.

    Args:
        value: any plain value.
        num_pickled: size of the pickle in bytes.

    Raises:
        NotPlain: it is too large, or nested too deeply.
    """
    _num_bytes(value, {}, max_expanded_bytes(num_pickled), depth=0)


def _num_bytes(value: Any, known: dict[int, int], limit: int, depth: int) -> int:
    """The expanded size of a value in bytes; `known` caches the sizes of containers by address."""
    if isinstance(value, str | bytes):
        return _VALUE_BYTES + len(value)
    if isinstance(value, int):
        return _VALUE_BYTES + value.bit_length() // 8
    if not isinstance(value, dict | list | tuple | set):
        return _VALUE_BYTES
    if id(value) not in known:
        if depth > _MAX_DEPTH:  # also if a container is within itself
            raise NotPlain(f"its values are nested more than {_MAX_DEPTH} levels deep")
        children = chain(value, value.values()) if isinstance(value, dict) else value
        total = CONTAINER_BYTES
        for child in children:
            total += _num_bytes(child, known, limit, depth + 1)
        known[id(value)] = total
    if known[id(value)] > limit:
        raise NotPlain(f"its values would take more than {limit:,} bytes")
    return known[id(value)]
