"""The picture of a sweep shows the jobs that completed, and no figure of one that did not."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from xftrain.multirun.plot import draw, figure


def _job(status: str = "completed", loss: float | None = 0.5, **changed: str) -> dict:
    shared = {"job": 0, "max_steps": "4", "run_dir": "", "error": ""}
    return {**shared, **changed, "status": status, "val/loss": loss, "tokens_per_s": None}


ROWS = [
    _job(lr="1e-3", attn="naive", loss=3.0),
    _job(lr="1e-3", attn="sdpa", loss=2.0),
    _job(lr="1e-1", attn="naive", loss=0.0),
    _job(lr="1e-1", attn="sdpa", loss=99.0, status="failed"),  # where it was when it failed
]


def _points(axis: Axes) -> list[tuple[float, float]]:
    """The coordinates of the points in a panel, without crosses and rings."""
    points = [line for line in axis.lines if line.get_marker() != "x" and not _is_ring(line)]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in points]


def _is_ring(line: Line2D) -> bool:
    return line.get_markerfacecolor() == "none"


def _rings(axis: Axes) -> list[float]:
    return [line.get_ydata()[0] for line in axis.lines if _is_ring(line)]


def _legend(axis: Axes) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_every_completed_job_is_a_point_and_a_failed_one_a_cross_at_the_edge() -> None:
    numeric, named = figure(ROWS).axes  # a panel for each key; there are no tokens/s
    assert _points(numeric) == [(0.001, 3.0), (0.001, 2.0), (0.1, 0.0)]
    assert numeric.get_xscale() == "log"
    assert [text.get_text() for text in named.get_xticklabels()] == ["naive", "sdpa"]
    assert _points(named) == [(0, 3.0), (1, 2.0), (0, 0.0)]
    for axis in (numeric, named):
        (cross,) = [line for line in axis.lines if line.get_marker() == "x"]
        assert cross.get_ydata()[0] == 0.96  # of the axis
        assert axis.get_ylim()[1] < 4
    assert _legend(numeric) == ["attn=naive", "attn=sdpa", "best", "not completed"]
    assert _legend(named) == ["lr=0.001", "lr=0.1"]  # what a ring and a cross mean is said once
    assert len({line.get_color() for line in numeric.lines[:2]}) == 2


def test_the_best_is_marked_in_each_panel_by_its_own_figure() -> None:
    rows = [_job(lr=lr, loss=loss) for lr, loss in (("1", 3.0), ("2", 1.0), ("3", 2.0))]
    rows += [_job(lr="4", loss=0.1, status="failed")]
    rows = [row | {"tokens_per_s": speed} for row, speed in zip(rows, (5, 6, 7, 8), strict=True)]
    loss, speed = figure(rows).axes
    assert (_rings(loss), _rings(speed)) == ([1.0], [7])
    with_bits = [row | {"val/bits_per_byte": -row["val/loss"]} for row in rows[:3]]
    bits, _ = figure(with_bits).axes
    assert bits.get_title("left") == "val/bits_per_byte" and _rings(bits) == [-3.0]


def test_numbers_of_a_search_have_three_digits_and_a_logarithmic_axis() -> None:
    drawn = ["0.00012345678901", "0.0010538190856564692", "0.0091234567890123"]
    rows = [_job(lr=lr, wd=wd) for lr, wd in zip(drawn, ("0.1", "0.2", "0.3"), strict=True)]
    rate, decay = figure(rows).axes
    assert rate.get_xscale() == "log" and decay.get_xscale() == "linear"
    assert _legend(decay)[:3] == ["lr=0.000123", "lr=0.00105", "lr=0.00912"]
    rate.figure.draw_without_rendering()
    ticks = [text.get_text() for text in rate.get_xticklabels()]
    assert {"0.0002", "0.001", "0.005"} <= set(ticks) and max(map(len, ticks)) <= 6
    assert [text.get_text() for text in decay.get_xticklabels()] == ["0.1", "0.2", "0.3"]


def test_what_cannot_be_told_apart_has_one_color() -> None:
    rows = [_job(lr=str(n), seed=str(n)) for n in range(9)]  # there are eight colors
    lines = [line for line in figure(rows).axes[0].lines if not _is_ring(line)]
    assert len({line.get_color() for line in lines}) == 1


def test_the_folder_has_the_picture_and_tensorboard_the_same_alone(tmp_path: Path) -> None:
    assert draw([_job(lr="$x", loss=1.0), *ROWS], tmp_path) == tmp_path / "summary.png"
    draw(ROWS, tmp_path)
    board = EventAccumulator(str(tmp_path))
    board.Reload()
    assert {name: tags for name, tags in board.Tags().items() if tags} == {
        "images": ["sweep/summary"]
    }
    (event,) = board.Images("sweep/summary")
    assert event.encoded_image_string == (tmp_path / "summary.png").read_bytes()
    with Image.open(tmp_path / "summary.png") as image:
        assert image.size == (event.width, event.height)
    assert len(list(tmp_path.iterdir())) == 2  # nothing is left of the first


@pytest.mark.parametrize("rows", [[], ROWS[:1], [ROWS[3], ROWS[3] | {"attn": "naive"}]])
def test_nothing_to_compare_is_no_picture(tmp_path: Path, rows: list[dict]) -> None:
    draw(ROWS, tmp_path)
    assert draw(rows, tmp_path) is None
    assert list(tmp_path.iterdir()) == []  # nor that of an earlier sweep in the folder


@pytest.mark.parametrize("wrong", [1e308, -1e300, 5e-324, 1e31])
def test_a_figure_that_no_axis_can_show_is_left_out(tmp_path: Path, wrong: float) -> None:
    rows = [_job(loss=0.1, seq="8"), _job(loss=wrong, seq="16"), _job(loss=0.3, seq=str(wrong))]
    made = figure(rows)
    assert made is not None and draw(rows, tmp_path) is not None
    assert sorted(y for _, y in _points(made.axes[0])) == [0.1, 0.3]
