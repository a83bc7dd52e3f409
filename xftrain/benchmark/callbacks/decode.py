"""Decoding by context length: speed and cache of multi-head, grouped and multi-query attention.

A step of decoding reads the whole cache, so that fewer K/V heads make it faster and smaller
(multi-query attention, Shazeer, 2019, arXiv:1911.02150; grouped-query attention, Ainslie et al.,
2023, arXiv:2305.13245).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

from xftrain.benchmark import tables
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import Node, Row, kv_heads, name_of, node_of, nodes_of
from xftrain.benchmark.decoding import DecodeCell, formula_bytes, measure_decoding
from xftrain.benchmark.worker import Job
from xftrain.config.fields import Dtype, Option, PositiveFloat, PositiveInt
from xftrain.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CONTEXTS_CUDA, _CONTEXTS_CPU = (1024, 4096, 16384, 32768), (128, 512)
_TOKENS_CUDA, _TOKENS_CPU = 128, 16


class Decode(Benchmark):
    """Measures decoding with the run's model and other head groupings, without reading prompts.

    The weights are random. A position encoding with `max_positions` gets as many as a context has.

    Args:
        heads: options of `model/heads`; ratios are relative to the one with a K/V head for each
            query head.
        contexts: M, the number of positions of each row after the last step, which are also those
            of the cache; None is 1,024 to 32,768 on a GPU, and 128 and 512 on a CPU.
        rows: B, the number of texts that are decoded at once.
        num_new_tokens: number of timed steps of a round, the last ones of each context; None is 128
            on a GPU and 16 on a CPU. As in `generate_texts`, a few steps use no CUDA graph.
        window: number of keys that a query attends to, to measure also with this window in each
            layer; None measures with the bias of the run's model only.
        rounds: number of times that each cell is measured, in turns with the others.
        dtype: dtype of weights and cache; `auto` is the dtype of the run.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "decode"
    title = "Decoding"
    needs_model = True

    def __init__(
        self,
        *,
        heads: tuple[Option, ...] = ("mha", "gqa", "mqa"),
        contexts: list[PositiveInt] | None = None,
        rows: PositiveInt = 8,
        num_new_tokens: PositiveInt | None = None,
        window: PositiveInt | None = None,
        rounds: PositiveInt = 5,
        dtype: Dtype = "auto",
        timeout_s: PositiveFloat = 300.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.heads = nodes_of("model/heads", list(heads))
        self.contexts, self.num_rows, self.num_new_tokens = contexts, rows, num_new_tokens
        self.window, self.rounds, self.dtype = window, rounds, dtype

    def jobs(self, context: Context) -> list[Job]:
        """Makes one job of all cells, in turns.

        Raises:
            ConfigError: a context is too short, the heads do not fit the model, or its layers have
                heads or biases of their own.
        """
        on_gpu = context.device.type == "cuda"
        num_tokens = self.num_new_tokens or (_TOKENS_CUDA if on_gpu else _TOKENS_CPU)
        contexts = sorted(self.contexts or (_CONTEXTS_CUDA if on_gpu else _CONTEXTS_CPU))
        if contexts[0] <= num_tokens:
            raise ConfigError(
                f"callbacks.decode.contexts must be longer than callbacks.decode.num_new_tokens, "
                f"{num_tokens}, whose steps are the last ones of a context, got {contexts[0]}: "
                "raise it, or lower callbacks.decode.num_new_tokens."
            )
        cells = [
            self._cell(context, heads, bias, length, num_tokens)
            for bias, length, heads in product(self._biases(context), contexts, self.heads)
        ]
        return [Job(measure_decoding, tuple(cells))]

    def _biases(self, context: Context) -> list[tuple[str, Node]]:
        """The biases to measure with, by their names: that of the run's model, and the window.

        Raises:
            ConfigError: layers of the model have heads or biases of their own.
        """
        pattern = context.run_config().model.layers.pattern or ()
        layers = context.run_config().model.layers.overrides
        replaced = ("heads", "bias") if self.window is not None else ("heads",)
        for name, part in product(layers, replaced):
            if part in layers[name]:
                key = "heads" if part == "heads" else "window"
                raise ConfigError(
                    f"callbacks.decode.{key} replaces model.{part} in every layer, and "
                    f"model.layers.{name}.{part} is set: remove the one or the other"
                    + (", as in callbacks.decode=null." if part == "heads" else ".")
                )
        own: Node = context.model_node()["bias"]
        differ = any("bias" in parts for parts in layers.values())
        biases = [(f"layers {','.join(pattern)}" if differ else name_of(own), own)]
        if self.window is not None:
            window = node_of("model/bias", {"name": "window", "window": self.window})
            biases.append((name_of(window), window))
        return biases

    def _cell(
        self, context: Context, heads: Node, bias: tuple[str, Node], length: int, num_tokens: int
    ) -> DecodeCell:
        model, own = context.run_config().model, context.model_node()
        head_dim = model.dim // model.num_heads
        assert context.vocab_size is not None, "the context is not that of a training run"
        pos = dict(own["pos"])
        if isinstance(pos.get("max_positions"), int):
            pos["max_positions"] = max(pos["max_positions"], length)
        dtype = context.dtype_for(self.dtype)
        columns = {
            "bias": bias[0],
            "heads": name_of(heads),
            "M": length,
            "B": self.num_rows,
            "num_new_tokens": num_tokens,
            "H": model.num_heads,
            "G": kv_heads(heads, model.num_heads, head_dim),
            "K": head_dim,
            "layers": model.num_layers,
            "dtype": dtype,
        }
        cell = DecodeCell(
            *(self.name, columns),
            model={**own, "heads": heads, "bias": bias[1], "pos": pos},
            vocab_size=context.vocab_size,
            num_rows=self.num_rows,
            num_positions=length,
            num_tokens=num_tokens,
            rounds=self.rounds,
            dtype=dtype,
            device=context.device.type,
        )
        return replace(cell, columns=columns | {"cache_formula_bytes": formula_bytes(cell)})

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders one table, with a line for each grouping at each context."""
        return _render(rows, is_summary=False)

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the section with the main columns only."""
        return _render(rows, is_summary=True)

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Draws speed and cache against the context."""
        from xftrain.benchmark.plots import over_length

        return {
            "speed": over_length(
                rows, "tokens_per_s", "decoding, tokens/s", curves="heads", better="high"
            ),
            "cache": over_length(rows, "cache_mib", "keys and values, MiB", curves="heads"),
        }


def _render(rows: Sequence[Row], *, is_summary: bool) -> str:
    """Renders the section with its main columns, or with all."""
    if not rows:
        return ""
    first = rows[0]
    several_biases = len({row["bias"] for row in rows}) > 1
    names: dict[str, str | tables.Format] = {"bias": "bias"} if several_biases else {}
    names |= {"context": lambda row: f"{row['M']:,}", "heads": "heads"}
    parts = [
        f"{first['layers']} layers with {first['H']} query heads of width {first['K']}, B = "
        f"{first['B']}, {first['dtype']}, bias {first['bias'] if not several_biases else 'below'}. "
        f"The last {first['num_new_tokens']:,} steps of each context are timed, without the "
        "prompt; `ms per token` is the time of a step, which adds a token to each of the B texts.",
        tables.columns_of(rows, {**names, **_columns(rows, is_summary=is_summary)}),
        tables.reasons(rows, lambda row: f"{row['bias']} {row['heads']} M={row['M']:,}"),
    ]
    return "\n\n".join(part for part in parts if part)


def _columns(rows: Sequence[Row], *, is_summary: bool) -> Mapping[str, str | tables.Format]:
    """The columns after those that name a row."""

    def ratio_of(field: str) -> tables.Format:
        return lambda row: _ratio(row, rows, field)

    main: dict[str, str | tables.Format] = {
        "tokens/s": tables.outcome("tokens_per_s"),
        "speed / MHA's": ratio_of("tokens_per_s"),
        "ms per token": "ms_per_token",
        "cache MiB": "cache_mib",
        "by formula": lambda row: tables.figure(row["cache_formula_bytes"] / 2**20),
        "cache / MHA's": ratio_of("cache_bytes"),
    }
    if is_summary:
        return main
    more: dict[str, str | tables.Format] = {
        "slots": "cache_slots",
        "p10 to p90, tokens/s": lambda row: tables.span(row, "tokens_per_s"),
        "n": "repetitions",
        "steps": _kind_of_steps,
    }
    return {"G": "G", **main, **more}


def _kind_of_steps(row: Row) -> str:
    if row["status"] != "ok":
        return "-"
    return "CUDA graph" if row["uses_graph"] else "launched one by one"


def _ratio(row: Row, rows: Sequence[Row], field: str) -> str:
    """The ratio of a field to that of the row with a K/V head for each query head."""
    for other in rows:
        is_alike = all(other[name] == row[name] for name in ("bias", "M"))
        if is_alike and other["G"] == other["H"] and row.get(field) and other.get(field):
            return tables.figure(row[field] / other[field])
    return "-"
