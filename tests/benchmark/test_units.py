"""The parts of the benchmark by themselves: figures, fits, rows, tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xftrain.benchmark import growth
from xftrain.benchmark.attention import _segment_errors, visible_pairs
from xftrain.benchmark.callbacks.packed import _verdict
from xftrain.benchmark.cells import attention_cell
from xftrain.benchmark.max_length import LongestCell, _search
from xftrain.benchmark.measure import Stopwatch, hidden_ms, measure_memory, spread
from xftrain.benchmark.reference import ratio
from xftrain.benchmark.rows import RowStore, read_rows, write_csv
from xftrain.benchmark.tolerances import check_parity
from xftrain.errors import ConfigError
from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn.naive import Naive
from xftrain.utils.timing import interleaved_times_ms

CPU = torch.device("cpu")
HERE = {"device": "cpu", "torch": "2.13"}


# ---- measuring


def test_memory_of_a_call_is_what_it_allocates_at_its_worst_moment() -> None:
    def call(handle: torch.Tensor) -> None:
        first = torch.ones(32 * 2**20)  # 128 MiB
        del first
        torch.ones(16 * 2**20)

    memory = measure_memory(lambda: torch.ones(8 * 2**20), call, CPU)  # 32 MiB
    if memory.extra_mib is None:
        pytest.skip("this system does not let a process reset its peak memory")
    assert memory.mask_mib == pytest.approx(32, abs=4)
    assert memory.extra_mib == pytest.approx(160, abs=8)
    assert memory.peak_mib is not None and memory.peak_mib > memory.extra_mib


def test_freed_memory_is_not_taken_for_room_to_use() -> None:
    # a former call's memory that the allocator keeps would hide what the next one takes
    blocks = [torch.ones(64 * 1024) for _ in range(400)]  # 100 MiB, below the mmap threshold
    del blocks
    memory = measure_memory(
        lambda: None, lambda _: [torch.ones(64 * 1024) for _ in range(400)], CPU
    )
    if memory.extra_mib is not None:
        assert memory.extra_mib == pytest.approx(100, abs=10)


def test_a_stopwatch_measures_the_call_alone() -> None:
    once = Stopwatch(CPU).once(lambda: torch.ones(1))
    assert 0 < min(once() for _ in range(20)) < 1.0


def test_python_is_hidden_behind_short_calls_and_long_ones_come_soon_after_each_other() -> None:
    assert hidden_ms(1.0, 1.0) == pytest.approx(2.0)  # Python sets the time: all of it, twice over
    assert hidden_ms(1.0, 1.5) == pytest.approx(1.5)  # the device is half a millisecond behind it
    assert hidden_ms(1.0, 7.0) == pytest.approx(0.5)
    assert hidden_ms(0.0, 7.0) > 0


@given(
    times=st.lists(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=3), min_size=1, max_size=4),
    budget=st.floats(0.001, 1.0),
)
def test_calls_are_made_in_turns_and_within_the_limits(
    times: list[list[float]], budget: float
) -> None:
    order: list[int] = []

    def call(index: int) -> float:
        order.append(index)
        return times[index][0]

    calls = [lambda index=index: call(index) for index in range(len(times))]
    series = interleaved_times_ms(calls, budget_s=budget, min_repeats=2, max_repeats=5)
    for index, taken in enumerate(series):
        fits = int(budget * 1e3 / times[index][0])
        assert len(taken) == min(max(fits, 2), 5)
    width = len(times)
    assert order[: 3 * width] == list(range(width)) * 3  # one to warm up, two of the turns


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_percentiles_are_ordered_and_within_the_data(values: list[float]) -> None:
    found = spread("ms", values)
    low, middle, high = found["ms_p10"], found["ms"], found["ms_p90"]
    assert min(values) <= low <= middle <= high <= max(values) or math.isclose(low, high)


@given(
    seqlens=st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple),
    packed=st.booleans(),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 25),
)
def test_visible_pairs_are_counted(
    seqlens: tuple[int, ...], packed: bool, causal: bool, window: int | None
) -> None:
    bias = AttnBias(causal, window if causal else None, seqlens if packed else None)
    assert visible_pairs(bias, sum(seqlens)) == int(bias.visible_MM(sum(seqlens)).sum())


# ---- results that are no numbers


class _NaN(Naive):
    """A backend with NaN in the output, or only in a gradient."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, q: Any, k: Any, v: Any, handle: Any) -> torch.Tensor:
        out = super().__call__(q, k, v, handle)
        if self.where == "out":
            return out * math.nan
        if out.requires_grad:
            out.register_hook(lambda grad: grad * math.nan)
        return out


@pytest.mark.parametrize("where", ["out", "grad"])
def test_nan_is_never_right(where: str) -> None:
    # max(0.0, nan) is 0.0 in Python: such kernels once counted as exact
    shape = AttnShape(1, 9, 2, 2, 8)
    verdict = check_parity(
        _NaN(where), AttnCall(AttnBias(), shape, torch.float32, CPU), torch.Generator()
    )
    assert verdict.faults and verdict.worst == math.inf

    cell = attention_cell(
        *("s", {"name": "naive"}, {"name": "causal"}, {"name": "mha"}),
        **{"rows": 1, "num_heads": 2, "head_dim": 8, "seqlens": (4, 1, 3)},
        **{"dtype": "float32", "device": "cpu"},
    )
    found = _segment_errors(_NaN(where), cell.call())
    assert found["error_packed"] == math.inf
    row = {"status": "ok", "error_packed": None, "error_alone": 1e-7}  # as JSON keeps it
    assert _verdict(row) == "WRONG"


@pytest.mark.parametrize(
    ("error", "size", "want"),
    [(1.0, 2.0, 0.5), (0.0, 0.0, 0.0), (1.0, 0.0, math.inf), (math.nan, 1.0, math.inf)],
)
def test_a_ratio_is_a_number_or_infinite(error: float, size: float, want: float) -> None:
    assert ratio(error, size) == want


# ---- the longest length


@given(limit=st.integers(100, 10**6), longest=st.integers(0, 10**6), start=st.integers(1, 4096))
def test_bisection_finds_the_longest_length(limit: int, longest: int, start: int) -> None:
    cell = LongestCell(
        "s", {}, {}, {}, AttnShape(1, start, 1, 1, 8), None, "float32", "cpu", limit=limit
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xftrain.benchmark.max_length.fits", lambda c: longest >= c.shape.M)
        noted: list[dict[str, Any]] = []
        found = _search(cell, lambda **fields: noted.append(fields))
    good, bad = found["longest_tokens"], found["fails_tokens"]
    assert good <= min(longest, limit) and found["tried"] == len(noted) < 60
    if bad is None:
        assert good == limit
    else:
        assert longest < bad and bad - good <= max(2 * 128, good / 32 + 128)


# ---- growth


@given(
    exponent=st.floats(-1, 3),
    factor=st.floats(0.01, 100),
    lengths=st.sets(st.integers(16, 65536), min_size=3, max_size=8),
)
def test_a_power_is_found_again(exponent: float, factor: float, lengths: set[int]) -> None:
    found = growth.fit([(length, factor * length**exponent) for length in lengths])
    assert found is not None
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.deviation < 1e-5
    assert (found.first, found.last) == (sorted(lengths)[-4:][0], max(lengths))


def test_two_points_are_no_growth_and_neither_is_one_length() -> None:
    assert growth.fit([(128, 1.0), (256, 2.0)]) is None
    assert growth.fit([(128, 1.0), (256, 0.0), (512, 0.0), (1024, 0.0)]) is None
    assert growth.fit([(128, 1.0), (128, 2.0), (128, 3.0)]) is None


def test_what_a_fit_supports_is_said() -> None:
    name = ("naive", "full", "mha")
    square = growth.fit([(2**n, 4.0**n) for n in range(7, 11)])
    line = growth.fit([(2**n, 2.0**n) for n in range(7, 11)])
    said = growth.section([(name, square, line), (("sdpa", "full", "mha"), line, None)])
    assert "- memory grows with the square of the length: naive full" in said
    assert "- memory grows in proportion to the length: sdpa full" in said
    assert "M^2.00 ± 0.00" in said


# ---- rows


def test_rows_survive_a_process_that_died_while_writing(tmp_path: Path) -> None:
    store = RowStore(tmp_path, HERE)
    store.add({"sweep": "a", "cell": "one", "status": "ok", "ms": 1.5})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"sweep": "a", "cell": "tw')
    again = RowStore(tmp_path, HERE)
    assert [row["cell"] for row in again.rows] == ["one"]
    again.add({"sweep": "b", "cell": "two", "status": "ok", "ms": math.nan})
    assert [row["cell"] for row in read_rows(tmp_path)] == ["one", "two"]
    assert read_rows(tmp_path)[1]["ms"] is None  # JSON has no NaN
    again.drop("a")
    assert [row["cell"] for row in read_rows(tmp_path)] == ["two"]


def test_rows_of_another_device_are_refused(tmp_path: Path) -> None:
    RowStore(tmp_path, HERE).add({"sweep": "a", "cell": "one", "status": "ok"})
    with pytest.raises(ConfigError, match="measured with device cpu, and here it is H100: choose"):
        RowStore(tmp_path, {**HERE, "device": "H100"})


def test_what_failed_is_not_kept_and_its_new_row_takes_its_place(tmp_path: Path) -> None:
    store = RowStore(tmp_path, HERE)
    for name, status in (("a", "ok"), ("b", "timeout"), ("c", "oom"), ("d", "unsupported")):
        store.add({"sweep": "s", "cell": name, "status": status})
    assert store.measured_cells() == {"a", "c", "d"}
    store.add({"sweep": "s", "cell": "b", "status": "ok"})
    assert [(row["cell"], row["status"]) for row in read_rows(tmp_path)] == [
        *(("a", "ok"), ("c", "oom"), ("d", "unsupported"), ("b", "ok"))
    ]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"sweep": "a"}\nnonsense\n')
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 2, is damaged"):
        read_rows(tmp_path)


def test_a_csv_has_a_column_for_every_field(tmp_path: Path) -> None:
    write_csv([{"a": 1}, {"b": "x,y"}], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().splitlines() == ["a,b", "1,", ',"x,y"']


# ---- cells


# ---- tables
