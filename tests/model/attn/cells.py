"""Every backend x bias x heads x packed x dtype, found on disk, and what is known to be refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch

from xftrain.config import registry
from xftrain.interfaces import AttnBias, AttnCall, AttnShape, Backend

WINDOW = 20
# An option of conf/model/bias with other values than its own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("window", {"window": WINDOW}),
    "alibi-dense": ("alibi", {"impl": "dense"}),
    "alibi-window": ("alibi", {"window": WINDOW}),
}
BIASES = sorted({*registry.option_names("model/bias"), *VARIANTS})
BACKENDS = [name for name in registry.option_names("model/attn") if name != "auto"]
NUM_HEADS = 8
NUM_KV_HEADS = {"mha": 8, "gqa": 2, "mqa": 1}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PACKED_LENGTHS = (37, 60, 8, 25)
ROW_LENGTH = sum(PACKED_LENGTHS)


@dataclass(frozen=True)
class Cell:
    """One combination."""

    backend: str
    bias: str
    heads: str
    packed: bool
    dtype: torch.dtype

    def __str__(self) -> str:
        packed = "packed" if self.packed else "rows"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.backend}-{self.bias}-{self.heads}-{packed}-{dtype}"

    def facts(self) -> AttnBias:
        name, options = VARIANTS.get(self.bias, (self.bias, {}))
        recipe = registry.load_class("model/bias", name)(**options)
        return recipe.build(NUM_HEADS, PACKED_LENGTHS if self.packed else None)

    def call(self, device: str, head_dim: int) -> AttnCall:
        rows = 1 if self.packed else 2
        shape = AttnShape(rows, ROW_LENGTH, NUM_HEADS, NUM_KV_HEADS[self.heads], head_dim)
        return AttnCall(self.facts(), shape, self.dtype, torch.device(device))


CELLS = [
    Cell(backend, bias, heads, packed, dtype)
    for backend, bias, heads, packed, dtype in product(
        BACKENDS, BIASES, NUM_KV_HEADS, (False, True), DTYPES
    )
]


@cache
def backend_named(name: str) -> Backend:
    loaded: Backend = registry.load_class("model/attn", name)()
    return loaded


# The kept list of refusals: (device, cell as text, reason), both regular expressions. A cell that
# refuses without being listed, or is listed and runs, fails the tests.
REFUSALS = [
    ("cpu", r"flex-.*", r"torch has no backward of FlexAttention on cpu"),
    # float32 goes to cutlass, which has no backward for the unpacked window (NaN upstream)
    ("cuda", r"xformers-(alibi-)?window-\w+-rows-float32", r"LocalAttentionMask"),
]


def listed_refusal(device: str, cell: Cell) -> str | None:
    """The reason pattern that the list has for this cell."""
    for on, pattern, reason in REFUSALS:
        if on == device and re.fullmatch(pattern, str(cell)):
            return reason
    return None
