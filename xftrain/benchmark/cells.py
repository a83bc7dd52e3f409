"""What a sweep measures: a cell is one row of the report, before it was measured."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from xftrain import registry
from xftrain.interfaces import AttnBias, AttnCall, AttnShape, Backend
from xftrain.option_checks import checked_option

# ok: it ran. oom: memory ran out. unsupported: refused, with reasons. failed: it raised.
# crashed: its process died. timeout: it did not come to an end.
Status = Literal["ok", "oom", "unsupported", "failed", "crashed", "timeout"]
Row = dict[str, Any]  # a measured cell, as it stands in rows.jsonl
Node = Mapping[str, Any]  # an option of a group: a name or a _target_, and its fields


@dataclass(frozen=True)
class Cell:
    """One row.

    Attributes:
        sweep: the callback that it belongs to.
        columns: what tells it from the other rows of the sweep, as the report shows it.
    """

    sweep: str
    columns: dict[str, Any]

    @property
    def key(self) -> str:
        """Its name, the same wherever the same is measured, and only there."""
        digest = hashlib.sha256(repr(self.decides).encode()).hexdigest()[:8]
        named = " ".join(f"{k}={v}" for k, v in self.columns.items())
        return f"{self.sweep}: {named} #{digest}"

    @property
    def decides(self) -> Any:
        """All that its figures depend on but the machine."""
        return self.columns

    @property
    def label(self) -> str:
        """Its name for a progress bar: words, and the length."""
        words = [value for value in self.columns.values() if isinstance(value, str)]
        length = [f"M={self.columns['M']}"] if "M" in self.columns else []
        return f"{self.sweep}: " + " ".join(words + length)


@dataclass(frozen=True)
class AttentionCell(Cell):
    """One attention call.

    Attributes:
        backend: node of `model/attn`.
        bias: node of `model/bias`.
        shape: sizes of the call.
        seqlens: document lengths of a packed row, or None.
        dtype: of q, k and v, as in `bfloat16`.
        device: `cuda` or `cpu`.
        check: `exact` adds the errors against float64; `segments` those of packed documents and
            of the same documents run one by one; `loop` adds the peak memory of a script's loop.
        is_timed: False leaves out the times.
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
    def decides(self) -> Any:
        """All that its figures depend on but the machine."""
        nodes = [sorted(node.items()) for node in (self.backend, self.bias)]
        place = (self.dtype, self.device, self.check, self.is_timed)
        return (nodes, self.shape, self.seqlens, place)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @property
    def torch_device(self) -> torch.device:
        """The device itself."""
        return torch.device(self.device)

    def call(self) -> AttnCall:
        """What is computed, and where."""
        recipe = registry.build(checked_option("model.bias", self.bias))
        bias: AttnBias = recipe.build(self.shape.H, self.seqlens)
        bias = bias.simplified(self.shape.M)
        return AttnCall(bias, self.shape, self.torch_dtype, self.torch_device)

    def build_backend(self) -> Backend:
        """A backend of its own."""
        backend: Backend = registry.build(checked_option("model.attn", self.backend))
        return backend


def attention_cell(
    sweep: str,
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
    """The cell with its columns; `more` are further ones.

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
    return AttentionCell(sweep, columns, backend, bias, shape, seqlens, dtype, device, check)


def kv_heads(heads: Node, num_heads: int, head_dim: int) -> int:
    """G of a head grouping."""
    with torch.device("meta"):
        made = registry.build(
            checked_option("model.heads", heads), num_heads * head_dim, num_heads, False
        )
    return int(made.num_kv_heads)


def node_of(group: str, option: str | Mapping[str, Any]) -> dict[str, Any]:
    """The node that a word or a node in a list of options stands for, checked.

    Raises:
        ConfigError: there is no such option, or it has no such field.
    """
    node = {"name": option} if isinstance(option, str) else dict(option)
    checked_option(group.replace("/", "."), node)
    return node


def nodes_of(group: str, options: list[str | dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes of a list of options."""
    return [node_of(group, option) for option in options]


def name_of(node: Node) -> str:
    """A node in words: `alibi`, `alibi impl=dense`, the class of a user's own."""
    name = node.get("name") or str(node["_target_"]).rpartition(".")[2]
    fields = [f"{key}={value}" for key, value in node.items() if key not in ("name", "_target_")]
    return " ".join([name, *fields])
