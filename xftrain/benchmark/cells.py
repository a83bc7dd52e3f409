"""Cells: the units that a benchmark measures. Each becomes one row of the report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from xftrain.config import registry
from xftrain.config.option_checks import checked_option
from xftrain.config.own_code import own_code
from xftrain.interfaces import AttnCall, AttnShape, Backend
from xftrain.model.layer_spec import built_bias

# ok: it ran. oom: out of memory. unsupported: refused, with reasons. failed: it raised.
# crashed: its process died. timeout: it did not end in time.
Status = Literal["ok", "oom", "unsupported", "failed", "crashed", "timeout"]
Row = dict[str, Any]  # a measured cell, a line of rows.jsonl
Node = Mapping[str, Any]  # an option of a group: a name or a _target_, and its fields


@dataclass(frozen=True)
class Cell:
    """One measurement of a benchmark, which becomes a row of the report.

    Attributes:
        benchmark: name of the callback that the cell belongs to.
        columns: the fields that identify the row within its benchmark in the report.
    """

    benchmark: str
    columns: dict[str, Any]

    @property
    def key(self) -> str:
        """A unique name, which is equal for equal measurements in any run."""
        digest = hashlib.sha256(repr(self.identity).encode()).hexdigest()[:8]
        named = " ".join(f"{k}={v}" for k, v in self.columns.items())
        return f"{self.benchmark}: {named} #{digest}"

    @property
    def identity(self) -> Any:
        """Everything that determines the results of the cell, except the machine."""
        return self.columns

    @property
    def label(self) -> str:
        """The cell's name in a progress bar."""
        names = [value for value in self.columns.values() if isinstance(value, str)]
        length = [f"M={self.columns['M']}"] if "M" in self.columns else []
        return f"{self.benchmark}: " + " ".join(names + length)


@dataclass(frozen=True)
class AttentionCell(Cell):
    """One attention call.

    Attributes:
        backend: node of `model/attn`.
        bias: node of `model/bias`.
        shape: sizes of the call.
        seqlens: document lengths of a packed row, or None.
        dtype: dtype of q, k and v, such as `bfloat16`.
        device: `cuda` or `cpu`.
        check: `exact` adds errors against float64; `segments` adds errors of packed documents and
            of the same documents run one by one; `loop` adds the peak memory of a script's loop.
        is_timed: whether times are measured.
    """

    backend: Node
    bias: Node
    shape: AttnShape
    seqlens: tuple[int, ...] | None
    dtype: str
    device: str
    check: Literal["exact", "segments", "loop"] | None = None
    is_timed: bool = True

    @property
    def identity(self) -> Any:
        """Everything that determines the results of the cell, except the machine."""
        nodes = [sorted(node.items()) for node in (self.backend, self.bias)]
        place = (self.dtype, self.device, self.check, self.is_timed)
        code = own_code(self.backend, self.bias)
        return (nodes, self.shape, self.seqlens, place, *([code] if code else []))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as a torch.dtype."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def torch_device(self) -> torch.device:
        """The device as a torch.device."""
        return torch.device(self.device)

    def call(self) -> AttnCall:
        """The attention call of this cell."""
        recipe = registry.build(checked_option("model.bias", self.bias))
        bias = built_bias(recipe, self.shape.H, self.seqlens).simplified(self.shape.M)
        return AttnCall(bias, self.shape, self.torch_dtype, self.torch_device)

    def build_backend(self) -> Backend:
        """Builds a new backend."""
        backend: Backend = registry.build(checked_option("model.attn", self.backend))
        return backend


def attention_cell(
    benchmark: str,
    backend: Node,
    bias: Node,
    heads: Node,
    *,
    rows: int,
    num_heads: int,
    head_dim: int,
    length: int | None = None,
    seqlens: tuple[int, ...] | None = None,
    dtype: str,
    device: str,
    check: Literal["exact", "segments", "loop"] | None = None,
    **more: Any,
) -> AttentionCell:
    """Builds a cell with its columns; `more` are further columns.

    Raises:
        ConfigError: an option that does not exist, or head counts that do not fit.
    """
    num_kv_heads = kv_heads(heads, num_heads, head_dim)
    length = sum(seqlens) if seqlens is not None else length
    assert length is not None
    columns = {
        "backend": name_of(backend),
        "bias": name_of(bias),
        "heads": name_of(heads),
        **more,
        "M": length,
        "B": rows,
        "H": num_heads,
        "G": num_kv_heads,
        "K": head_dim,
        "dtype": dtype,
    }
    shape = AttnShape(rows, length, num_heads, num_kv_heads, head_dim)
    return AttentionCell(benchmark, columns, backend, bias, shape, seqlens, dtype, device, check)


def kv_heads(heads: Node, num_heads: int, head_dim: int) -> int:
    """The number of K/V heads, G, of a head grouping."""
    with torch.device("meta"):
        made = registry.build(
            checked_option("model.heads", heads), num_heads * head_dim, num_heads, False
        )
    return int(made.num_kv_heads)


def kv_cache_bytes(layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """The bytes of one token in the KV cache: keys and values of every layer."""
    return 2 * layers * num_kv_heads * head_dim * dtype.itemsize


def node_of(group: str, option: str | Mapping[str, Any]) -> dict[str, Any]:
    """Checks an option in a list, given by name or as a node, and returns its node.

    Raises:
        ConfigError: there is no such option, or it has no such field.
    """
    node = {"name": option} if isinstance(option, str) else dict(option)
    checked_option(group.replace("/", "."), node)
    return node


def nodes_of(group: str, options: list[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks a list of options and returns their nodes."""
    return [node_of(group, option) for option in options]


def name_of(node: Node) -> str:
    """Names a node: `alibi`, `alibi impl=dense`, or a user's own class."""
    name = node.get("name") or str(node["_target_"]).rpartition(".")[2]
    fields = [f"{key}={value}" for key, value in node.items() if key not in ("name", "_target_")]
    return " ".join([name, *fields])
