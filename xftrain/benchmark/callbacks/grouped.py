"""Multi-head, grouped-query and multi-query attention: time, memory, parameters and KV cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from xftrain.benchmark import tables
from xftrain.benchmark.attention import measure_attention
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import Row, attention_cell, kv_cache_bytes, node_of, nodes_of
from xftrain.benchmark.worker import Job
from xftrain.commands import builder
from xftrain.config.fields import Dtype, Option, PositiveFloat, PositiveInt
from xftrain.config.option_checks import checked_option
from xftrain.config.run_config import ModelConfig

_LENGTH_CUDA, _LENGTH_CPU = 4096, 512
_ALL = tables.TIMES | tables.MEMORY | tables.KERNEL


class Grouped(Benchmark):
    """Measures attention for each head grouping, with parameters and KV cache of the run's model.

    Args:
        backends: options of `model/attn`; None is all, and a user's own class in `model.attn`.
        bias: option of `model/bias`.
        heads: options of `model/heads`.
        rows: B.
        length: M, and the full context of the KV cache; None is 4,096 on a GPU and 512 on a CPU.
        num_heads: H.
        head_dim: K.
        num_layers: number of layers of the KV cache; None is that of the run's model.
        dtype: `auto` is the dtype of the run.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "grouped"
    title = "Head groupings"
    needs_model = True

    def __init__(
        self,
        *,
        backends: list[Option] | None = None,
        bias: Option = "causal",
        heads: tuple[Option, ...] = ("mha", "gqa", "mqa"),
        rows: PositiveInt = 2,
        length: PositiveInt | None = None,
        num_heads: PositiveInt = 16,
        head_dim: PositiveInt = 64,
        num_layers: PositiveInt | None = None,
        dtype: Dtype = "auto",
        timeout_s: PositiveFloat = 120.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.backends, self.dtype = backends, dtype
        self.bias = node_of("model/bias", bias)
        self.heads = nodes_of("model/heads", list(heads))
        self.length, self.num_layers = length, num_layers
        self.shape: dict[str, Any] = {"rows": rows, "num_heads": num_heads, "head_dim": head_dim}

    def jobs(self, context: Context) -> list[Job]:
        """Makes a job for each backend."""
        on_gpu = context.device.type == "cuda"
        dtype = context.dtype_for(self.dtype)
        length = self.length or (_LENGTH_CUDA if on_gpu else _LENGTH_CPU)
        layers = self.num_layers or context.run_config().model.num_layers
        cells = []
        for backend, heads in product(context.backends(self.backends), self.heads):
            cell = attention_cell(
                self.name,
                backend,
                self.bias,
                heads,
                length=length,
                dtype=dtype,
                device=context.device.type,
                **self.shape,
            )
            cache = kv_cache_bytes(layers, cell.shape.G, cell.shape.K, cell.torch_dtype)
            facts = {
                "layers": layers,
                "kv_bytes_per_token": cache,
                "kv_mib_full_context": cache * length / 2**20,
                "parameters": _parameters(context.run_config().model, heads),
            }
            cells.append(replace(cell, columns=cell.columns | facts))
        return [*self.peak_jobs(context, dtype), Job(measure_attention, tuple(cells))]

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders one table."""
        return _render(rows, _ALL)

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the section with the main columns only."""
        return _render(rows, tables.MAIN)


def _render(rows: Sequence[Row], shown: Mapping[str, str | tables.Format]) -> str:
    """Renders the section with these columns."""
    if not rows:
        return ""
    first = rows[0]
    columns: dict[str, str | tables.Format] = {
        "backend": "backend",
        "heads": "heads",
        "G": "G",
        **shown,
    }
    cache: dict[str, str | tables.Format] = {
        "heads": "heads",
        "G": "G",
        "KV cache, bytes a token": lambda row: f"{row['kv_bytes_per_token']:,}",
        "KV cache, MiB a full context": "kv_mib_full_context",
        "parameters of the run's model": lambda row: (
            f"{row['parameters']:,}" if row["parameters"] else "-"
        ),
    }
    by_heads = {row["heads"]: row for row in rows}
    parts = [
        f"{first['H']} query heads of width {first['K']}, B = {first['B']}, M = "
        f"{first['M']:,}; the KV cache is of {first['layers']} layers in {first['dtype']}.",
        tables.columns_of(list(by_heads.values()), cache),
        tables.columns_of(rows, columns),
        tables.reasons(rows, lambda row: f"{row['backend']} {row['heads']}"),
    ]
    return "\n\n".join(part for part in parts if part)


def _parameters(model: ModelConfig, heads: Mapping[str, Any]) -> int | None:
    """The number of parameters of the run's model with a grouping; None if its heads do not fit."""
    try:
        model = replace(model, heads=checked_option("model.heads", dict(heads)))
        with torch.device("meta"):
            made = builder.assemble(model, model.vocab_size or 64)
    except ValueError:
        return None
    return sum(parameter.numel() for parameter in made.parameters())
