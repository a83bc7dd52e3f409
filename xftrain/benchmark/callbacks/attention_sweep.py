"""Time and memory of attention: backend x bias x heads x sequence length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from xftrain.benchmark import growth, tables
from xftrain.benchmark.attention import measure_attention
from xftrain.benchmark.benchmark import Benchmark, Context
from xftrain.benchmark.cells import Row, attention_cell, nodes_of
from xftrain.benchmark.max_length import longest_job, longest_section
from xftrain.benchmark.tables import figure
from xftrain.benchmark.worker import Job
from xftrain.config import registry
from xftrain.config.fields import Dtype, NonNegativeInt, Option, PositiveFloat, PositiveInt
from xftrain.config.option_checks import checked_option
from xftrain.interfaces import Backend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LENGTHS_CUDA = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_LENGTHS_CPU = (128, 256, 512, 1024)
_MB = 2**20 / 1e6
_LONGEST = "The longest length that fits, without backends that compile for each length:"
_TUTORIAL = ("naive", "xformers")  # the backends of the tutorial's table, without a mask
# The output of the tutorial's script on an H100 80GB (torch 2.11, xformers 0.0.35): MB, MB, ms, ms.
_TUTORIAL_H100 = {
    512: (148, 83, 1.32, 1.24),
    1024: (361, 97, 1.21, 1.71),
    2048: (1189, 124, 2.61, 1.46),
    4096: (4456, 179, 9.74, 1.74),
}
_TUTORIAL_SIZES = {"B": 2, "H": 8, "K": 64, "dtype": "float16"}


class AttentionSweep(Benchmark):
    """Measures forward, and forward plus backward, of single attention calls.

    Args:
        backends: options of `model/attn`; None is all, and a user's own class in `model.attn`.
        biases: options of `model/bias`.
        heads: options of `model/heads`.
        lengths: M; None is 512 to 65,536 on a GPU, as the tutorial's table and on, and 128 to
            1,024 on a CPU.
        num_compiled_lengths: number of lengths for backends that compile for each length.
        rows: B.
        num_heads: H.
        head_dim: K.
        dtype: `auto` is float16 on a GPU, as in the tutorial's table, and float32 on a CPU.
        longest: limit in tokens of a search for the longest length that fits into memory; 0 skips
            the search.
        timeout_s: longest time without a message from a cell.
        resume: keep the rows that are in the run folder already.
    """

    modifies_weights = False

    name = "attention_sweep"
    title = "Attention by sequence length"

    def __init__(
        self,
        *,
        backends: list[Option] | None = None,
        biases: tuple[Option, ...] = ("full", "causal", "window", "alibi"),
        heads: tuple[Option, ...] = ("mha",),
        lengths: list[PositiveInt] | None = None,
        num_compiled_lengths: PositiveInt | None = 3,
        rows: PositiveInt = 2,
        num_heads: PositiveInt = 8,
        head_dim: PositiveInt = 64,
        dtype: Dtype = "auto",
        longest: NonNegativeInt = 0,
        timeout_s: PositiveFloat = 120.0,
        resume: bool = True,
    ) -> None:
        super().__init__(timeout_s=timeout_s, resume=resume)
        self.backends, self.lengths, self.dtype = backends, lengths, dtype
        self.biases = nodes_of("model/bias", list(biases))
        self.heads = nodes_of("model/heads", list(heads))
        self.num_compiled_lengths, self.longest = num_compiled_lengths, longest
        self.shape: dict[str, Any] = {"rows": rows, "num_heads": num_heads, "head_dim": head_dim}

    def jobs(self, context: Context) -> list[Job]:
        """Makes a job of all backends for each length, bias and head grouping."""
        on_gpu = context.device.type == "cuda"
        dtype = self.dtype
        if dtype == "auto":
            dtype = "float16" if on_gpu else "float32"
        lengths = sorted(self.lengths or (_LENGTHS_CUDA if on_gpu else _LENGTHS_CPU))
        few = set(_few(lengths, self.num_compiled_lengths))
        backends = context.backends(self.backends)
        common: dict[str, Any] = {**self.shape, "dtype": dtype, "device": context.device.type}
        jobs = self.peak_jobs(context, dtype)
        for length, heads, bias in product(lengths, self.heads, self.biases):
            cells = [
                attention_cell(
                    *(self.name, backend, bias, heads),
                    length=length,
                    check="loop" if _in_tutorial(backend, bias) else None,
                    **common,
                )
                for backend in backends
                if length in few or not _compiles(backend)
            ]
            jobs.append(Job(measure_attention, tuple(cells)))
        if self.longest:
            jobs += [
                longest_job(
                    attention_cell(self.name, backend, bias, heads, length=lengths[0], **common),
                    self.longest,
                )
                for backend, bias, heads in product(backends, self.biases, self.heads)
                if not _compiles(backend)
            ]
        return jobs

    @classmethod
    def section(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders tables, growth, and the reasons why rows have no figures."""
        return cls._render(rows, tables.TIMES | tables.MEMORY | tables.KERNEL)

    @classmethod
    def summary(cls, rows: Sequence[Row], peak: float | None) -> str:
        """Renders the section with the main columns only."""
        return cls._render(rows, tables.MAIN)

    @classmethod
    def _render(cls, rows: Sequence[Row], shown: Mapping[str, str | tables.Format]) -> str:
        names: dict[str, str | tables.Format] = {
            name: name for name in ("backend", "bias", "heads", "M")
        }
        timed = [row for row in rows if "longest_limit" not in row]
        parts = [
            cls.head(rows),
            f"{_LONGEST}\n\n{longest_section(rows)}" if len(timed) < len(rows) else "",
            "All rows:",
            tables.columns_of(timed, {**names, **shown}),
        ]
        return "\n\n".join(part for part in parts if part)

    @classmethod
    def head(cls, rows: Sequence[Row]) -> str:
        """Renders the section up to its table of all rows."""
        timed = [row for row in rows if "longest_limit" not in row]
        if not timed:
            return ""
        parts = [
            tutorial_table([row for row in timed if row["heads"] == timed[0]["heads"]]),
            _fastest(timed),
            _growth(timed),
            tables.reasons(timed, lambda row: f"{row['backend']} {row['bias']} M={row['M']:,}"),
        ]
        return "\n\n".join(part for part in parts if part)

    @classmethod
    def figures(cls, rows: Sequence[Row]) -> dict[str, Figure]:
        """Plots time, memory and TF/s against length, and TF/s by backend and bias."""
        from xftrain.benchmark.plots import heat_map, over_length

        timed = [row for row in rows if "longest_limit" not in row]
        timed = [row for row in timed if row["heads"] == timed[0]["heads"]]
        made = {
            "time": over_length(timed, "ms", "forward + backward, ms"),
            "memory": over_length(timed, "extra_mib", "memory above the inputs, MiB"),
            "rate": over_length(timed, "tflops", "forward + backward, TF/s", better="high"),
        }
        ran = [row["M"] for row in timed if row["status"] == "ok"]
        if ran and len({row["bias"] for row in timed}) > 1:
            length = _common_length(timed)
            at = [row for row in timed if row["M"] == length]
            label = f"TF/s, forward + backward, M = {length:,}"
            made["heat"] = heat_map(at, "tflops", label, better="high")
        return made


def tutorial_table(rows: Sequence[Row]) -> str:
    """Renders naive and xFormers attention without a mask in the form of the tutorial's table.

    Memory is the process's peak in MB (10^6 bytes). On a GPU, both columns are of a script's loop
    of calls, in which gradients accumulate in `.grad`.
    """
    pairs = {
        (row["backend"], row["M"]): row
        for row in rows
        if row["bias"] == "full" and row["backend"] in _TUTORIAL
    }
    lengths = sorted({length for _, length in pairs})
    if {backend for backend, _ in pairs} != set(_TUTORIAL):
        return ""

    def cell(backend: str, length: int, field: str) -> str:
        row = pairs.get((backend, length))
        if row is None:
            return "-"
        if row["status"] != "ok":
            return tables.STATUS[row["status"]]
        if field == "ms":
            return f"{row.get('loop_ms') or row['ms']:.2f}"
        peak = row.get("loop_peak_mib") or row["peak_mib"]
        return "-" if peak is None else f"{peak * _MB:,.0f}"

    fields = [("naive", "mb"), ("xformers", "mb"), ("naive", "ms"), ("xformers", "ms")]
    lines = [[str(m), *(cell(backend, m, field) for backend, field in fields)] for m in lengths]
    header = ["seqlen", "naive MB", "xformers MB", "naive ms", "xf ms"]
    first = rows[0]
    if "H100" in first["device"] and all(first[n] == v for n, v in _TUTORIAL_SIZES.items()):
        header += [f"tutorial's {title}" for title in header[1:]]
        for line, length in zip(lines, lengths, strict=True):
            line += [f"{value:,}" for value in _TUTORIAL_H100.get(length, ())] or ["-"] * 4
    return (
        "As in the tutorial: not causal, a loop of `attention(q, k, v).sum().backward()` (on a CPU "
        "the time of single calls), peak memory in MB (10^6 bytes). Short calls take Python longer "
        "than a GPU, so their ms depend more on the host's CPU; the GPU's own time is below.\n\n"
        + tables.table(header, lines)
    )


def _in_tutorial(backend: dict[str, Any], bias: dict[str, Any]) -> bool:
    return backend.get("name") in _TUTORIAL and bias.get("name") == "full"


def _fastest(rows: Sequence[Row]) -> str:
    """Tabulates the fastest backend by bias and length."""
    ran = [row for row in rows if row["status"] == "ok"]
    if not ran:
        return ""
    columns = list(dict.fromkeys((row["bias"], row["heads"]) for row in rows))
    found: dict[tuple[Any, ...], Row] = {}
    for row in ran:
        place = (row["M"], row["bias"], row["heads"])
        found[place] = min(found.get(place, row), row, key=lambda row: row["ms"])
    lines = []
    for length in sorted({row["M"] for row in rows}):
        line = [f"{length:,}"]
        for bias, heads in columns:
            best = found.get((length, bias, heads))
            line.append("-" if best is None else f"{best['backend']} {figure(best['ms'])} ms")
        lines.append(line)
    several = len({heads for _, heads in columns}) > 1
    header = [f"{bias} {heads}" if several else bias for bias, heads in columns]
    return "The fastest, forward and backward on the device:\n\n" + tables.table(
        ["seqlen", *header], lines
    )


def _growth(rows: Sequence[Row]) -> str:
    """Renders how memory and time of each backend grow with the length."""
    grown = []
    for name in dict.fromkeys((row["backend"], row["bias"], row["heads"]) for row in rows):
        own = [row for row in rows if (row["backend"], row["bias"], row["heads"]) == name]
        ran = [row for row in own if row["status"] == "ok"]
        memory, time = (
            growth.fit([(row["M"], row[field] or 0.0) for row in ran])
            for field in ("extra_mib", "ms")
        )
        grown.append((name, memory, time))
    return growth.section(grown)


def _few(lengths: Sequence[int], number: int | None) -> list[int]:
    """Chooses `number` evenly spread lengths, the last one included."""
    if number is None or number >= len(lengths):
        return list(lengths)
    step = (len(lengths) - 1) / max(number - 1, 1)
    return [lengths[len(lengths) - 1 - round(n * step)] for n in range(number)]


def _compiles(backend: dict[str, Any]) -> bool:
    built: Backend = registry.build(checked_option("model.attn", backend))
    return built.needs_compilation


def _common_length(rows: Sequence[Row]) -> int:
    """The length at which most rows ran; of several, the longest."""
    counts: dict[int, int] = {}
    for row in rows:
        counts[row["M"]] = counts.get(row["M"], 0) + (row["status"] == "ok")
    return max(counts, key=lambda length: (counts[length], length))
