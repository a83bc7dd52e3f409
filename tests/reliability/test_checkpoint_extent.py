"""A small checkpoint that stands for gigabytes once its values are made, or gone through."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from typing import Any

import pytest
import torch

from xftrain.checkpoint.plain_pickle import read_plain_pickle
from xftrain.checkpoint.plain_values import NotPlain

MIB = b"X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20)
LATIN1 = b"X\x06\x00\x00\x00latin1"
# one list twice in the next, 60 times, with memo 60 the last; as tuples
LISTS = b"]q\x00" + b"".join(
    b"]q" + bytes([n]) + b"(h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"e" for n in range(1, 60)
)
TUPLES = b")q\x00" + b"".join(
    b"h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"\x86q" + bytes([n]) for n in range(1, 60)
)


def _pickle(*operations: bytes) -> bytes:
    return b"\x80\x02](" + b"".join(operations) + b"e."


HOSTILE = {
    "bytes made of one text": _pickle(
        MIB, b"q\x00", LATIN1, b"\x86q\x01", b"c_codecs\nencode\nh\x01R" * 100
    ),
    "sets made of one list": _pickle(
        b"](" + b"K\x01" * 100_000 + b"eq\x00",
        b"c__builtin__\nset\nh\x00\x85R" * 1,
        b"ctorch\nSize\nh\x00\x85R" * 100,
    ),
    "one text in a list": _pickle(MIB, b"q\x00", b"h\x00" * 100),
    "one text as keys": _pickle(MIB, b"q\x00", b"}h\x00Ns" * 100),
    "one number in a list": _pickle(b"\x8a\xff" + b"\x01" * 255, b"q\x00", b"h\x00" * 1_000_000),
    "a device of lists": _pickle(LISTS, b"ctorch\ndevice\nh\x3b\x85R"),
    "an encoding of lists": _pickle(LISTS, b"c_codecs\nencode\n", LATIN1, b"h\x3b\x86R"),
    "a storage named by tuples": _pickle(
        TUPLES, b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nh\x3bX\x03\x00\x00\x00cpuK\x01tQ"
    ),
    "attributes named by tuples": _pickle(TUPLES, b"ccollections\nOrderedDict\n)R](h\x3beb"),
    "a million of nothing": _pickle(b"N" * 1_000_001),
    "keys of one hash": _pickle(
        b"}("
        + b"".join(
            b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(2, 9_000)
        )
        + b"u"
    ),
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_that_stands_for_much_more_than_it_has_is_refused(kind):
    with pytest.raises(NotPlain) as refused:
        read_plain_pickle(HOSTILE[kind], {"0": 4})
    assert len(str(refused.value)) < 200


def test_what_a_run_saves_is_far_below_the_limits():
    own: Any = {
        "figures": [float(n) for n in range(200_000)],
        "steps": set(range(100_000)),
        "bytes": [bytes([n]) * n for n in range(1, 256)],
        "words": ["validation/loss"] * 100_000,
        "state": {n: {"exp_avg_sq": n, "exp_avg": n} for n in range(10_000)},
        "shapes": [torch.Size([n, 3]) for n in range(1000)],
    }
    file = io.BytesIO()
    torch.save(own, file)
    with zipfile.ZipFile(file) as archive:
        held = read_plain_pickle(archive.read("archive/data.pkl"), {})
    assert held == own and pickle.loads(pickle.dumps(held)) == own
