"""How much plain values are that a file of somebody else's holds: to go through, and to show."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

_MAX_DEPTH = 64  # of values within values; Python's recursion ends at some hundred
_MAX_INTEGER = 2**60  # of a key; larger ones may all have one hash, and take for ever to put
# Bytes that all values would take, where one within two others counts twice: so many more than the
# pickle has, and so many times the pickle's. Any of them may be made a text of, for a message.
_MORE_BYTES, _TIMES = 16 << 20, 8
_MOST = 2**62  # of a number
_MOST_COUNTED = 2**53  # steps, batches or tokens; no run has more
LATEST = 2**62 - 1  # later than any time in nanoseconds
_VALUE = 8  # bytes of one, besides its text; a pickle has one at least
_KEYS = str | int | float | None  # of a dictionary; the hash of a tuple that is deep ends Python


class NotPlain(ValueError):
    """A pickle that is damaged, or holds more than plain values and dense tensors."""


def is_count(value: Any) -> bool:
    """Whether it is an integer of at least 0 that no run counts further than can be saved."""
    return type(value) is int and 0 <= value < _MOST_COUNTED


def is_time(value: Any) -> bool:
    """Whether it is a time in nanoseconds, as of a save."""
    return type(value) is int and 0 <= value <= LATEST


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float, neither NaN nor too large; infinity is one."""
    if type(value) is int:
        return abs(value) < _MOST
    return type(value) is float and not math.isnan(value)


def check_key(value: Any) -> None:
    """Refuses a key of a dictionary, or a member of a set, whose hash is not soon made."""
    if not isinstance(value, _KEYS):
        raise NotPlain(f"it has a key that is a {type(value).__name__}")
    if isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise NotPlain(f"it has a key that is an integer above {_MAX_INTEGER:,}")


def check_extent(value: Any, num_pickled: int) -> None:
    """Refuses what takes many times the bytes of its pickle, where all of it is written out.

    One list within another, that twice within a third and so on soon takes for ever to go through;
    one long text a thousand times in a list takes as long to show.

    Args:
        value: of any kind.
        num_pickled: the bytes of the pickle.

    Raises:
        NotPlain: it does, or has values within values, too many of them.
    """
    _num_bytes(value, {}, _MORE_BYTES + _TIMES * num_pickled, depth=0)


def _num_bytes(value: Any, known: dict[int, int], limit: int, depth: int) -> int:
    """Of a value and those within it; `known` has those of containers by their addresses."""
    if isinstance(value, str | bytes):
        return _VALUE + len(value)
    if isinstance(value, int):
        return _VALUE + value.bit_length() // 8
    if not isinstance(value, dict | list | tuple | set):
        return _VALUE
    if id(value) not in known:
        if depth > _MAX_DEPTH:  # also where one is within itself
            raise NotPlain(f"it has values within values, more than {_MAX_DEPTH} of them")
        children = chain(value, value.values()) if isinstance(value, dict) else value
        total = _VALUE
        for child in children:
            total += _num_bytes(child, known, limit, depth + 1)
        known[id(value)] = total
    if known[id(value)] > limit:
        raise NotPlain(f"its values would take more than {limit:,} bytes")
    return known[id(value)]
