"""The plots of a benchmark mark the best and what ended, and no label covers a point."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from xftrain.benchmark.callbacks.alibi import Alibi
from xftrain.benchmark.callbacks.attention_sweep import AttentionSweep
from xftrain.benchmark.callbacks.parity import Parity
from xftrain.benchmark.callbacks.train_sweep import TrainSweep
from xftrain.benchmark.plots import bars, heat_map, over_length
from xftrain.utils.plot_style import COLORS, format_number


def _row(backend: str, ms: float | None, length: int = 512, **more: Any) -> dict[str, Any]:
    row = {"backend": backend, "bias": "causal", "heads": "mha", "ffn": "gelu", "M": length}
    ok = {"status": "ok", "ms": ms, "tflops": ms, "extra_mib": ms, "tokens_per_s": ms}
    return row | ok | {"worst": ms, "faults": "", "reason": None} | more


def _rings(axis: Axes) -> set[tuple[float, float]]:
    lines = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    return {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in lines}


def _legend(made: Figure) -> list[str]:
    return [text.get_text() for text in made.legends[0].get_texts()]


CURVES = [
    *(_row("sdpa", ms, length) for length, ms in ((512, 2.0), (1024, 4.0), (2048, 8.0))),
    *(_row("naive", ms, length) for length, ms in ((512, 1.0), (1024, 9.0))),
    _row("naive", None, 2048, status="oom"),
    _row("naive", None, 4096, status="oom"),
    _row("sdpa", None, 4096, status="oom"),
]


def test_the_best_of_each_length_has_a_ring_and_an_end_a_cross_above_all_points() -> None:
    made = over_length(CURVES, "ms", "ms")
    (axis,) = made.axes
    assert _rings(axis) == {(512, 1.0), (1024, 4.0), (2048, 8.0)}
    made.draw_without_rendering()
    crosses = [line for line in axis.lines if line.get_marker() == "x"]
    heights = [axis.transAxes.transform((0, line.get_ydata()[0]))[1] for line in crosses]
    assert min(heights) > axis.transData.transform((512, 9.0))[1] + 5  # pixels
    places = {to_hex(line.get_color()): line.get_xdata()[0] for line in crosses}
    assert len(places) == 2 and 2048 in {round(place / 1.087) for place in places.values()}
    assert _legend(made) == ["sdpa", "naive", "best", "out of memory"]
    assert not axis.texts  # a label at a curve's end would stand on other curves
    assert _rings(over_length(CURVES, "ms", "x", better="high").axes[0]) == {
        *((512, 2.0), (1024, 9.0), (2048, 8.0))
    }


def test_attention_without_alibi_is_no_way_to_have_it() -> None:
    rows = [_row("sdpa", 1.0, way="no bias, sdpa"), _row("sdpa", 2.0, way="folded", bias="alibi")]
    assert _rings(Alibi.figures(rows)["time"].axes[0]) == {(512, 2.0)}


def test_the_scale_of_errors_ends_at_the_limit() -> None:
    rows = [_row("sdpa", 1.0), _row("naive", 1.9), _row("flex", 300.0, faults="too large")]
    rows += [_row("sdpa", None, bias="full", faults="dq has NaN")]
    rows += [_row("flex", None, bias="full", status="unsupported"), _row("naive", 0.5, bias="full")]
    made = Parity.figures(rows)["errors"]
    (image,) = made.axes[0].images
    assert image.get_clim() == (0, 2.0)
    (sdpa, wrong), (near, _), (far, refused) = image.to_rgba(image.get_array())
    assert to_hex(far) == to_hex(wrong) == COLORS[1].lower()
    assert to_hex(sdpa) != to_hex(near) != to_hex(far) and refused[3] == 0
    texts = [text.get_text() for text in made.axes[0].texts]
    assert texts == ["1.00", "inf\nWRONG", "1.90", "0.500", "300\nWRONG", "refused"]
    labels = [text.get_text() for text in made.axes[1].get_yticklabels()]
    assert labels == ["0", "1: torch's", "2: the limit"]


def test_a_heat_map_frames_the_best_of_each_bias() -> None:
    rows = [_row("sdpa", 3.0), _row("naive", 5.0), _row("sdpa", 9.0, bias="full")]
    axis = heat_map(rows, "tflops", "TF/s", better="high").axes[0]
    assert [patch.get_xy() for patch in axis.patches] == [(-0.48, 0.52), (0.52, -0.48)]


def test_one_bias_makes_no_heat_map() -> None:
    assert Parity.figures([_row("sdpa", 1.0), _row("naive", 1.0)]) == {}
    assert AttentionSweep.figures(CURVES).keys() == {"time", "memory", "rate"}
    both = [*CURVES, *(row | {"bias": "full"} for row in CURVES)]
    assert "heat" in AttentionSweep.figures(both)


def test_training_speeds_are_bars_the_fastest_first() -> None:
    rows = [_row("naive", 500.0), _row("sdpa", 900.0), _row("sdpa", 700.0, heads="gqa")]
    rows += [_row("flex", None, status="failed")]
    (axis,) = TrainSweep.figures(rows)["speed"].axes
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == ["sdpa mha", "sdpa gqa", "naive mha"]
    assert [text.get_text().strip() for text in axis.texts] == ["900  best", "700", "500"]
    assert axis.get_title("left") == "training, tokens/s, causal gelu"
    assert not bars(rows[3:], "tokens_per_s", "x", ["backend"]).axes[0].texts


def test_numbers_have_three_significant_digits() -> None:
    values = (0.0010538190856564692, 1e-5, 0.1, 2.0, 1024.0, 1234.5, 0.0, -0.5, 1e30)
    shown = ["0.00105", "1e-05", "0.1", "2", "1,024", "1,230", "0", "-0.5", "1e+30"]
    assert [format_number(value) for value in values] == shown
