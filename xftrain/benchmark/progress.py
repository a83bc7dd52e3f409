"""Shows the progress of a benchmark: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from xftrain.benchmark.cells import Cell

log = logging.getLogger(__name__)

_LINE_S = 15.0  # seconds between two log lines


class Progress:
    """Counts cells, names the current one, and estimates the time left.

    Args:
        name: the benchmark's name.
        num_cells: the number of all cells.
        num_done: the number of cells that already have a row.
    """

    def __init__(self, name: str, num_cells: int, num_done: int) -> None:
        self.name, self.num_cells, self.num_done = name, num_cells, num_done
        self._first, self._started = num_done, time.monotonic()
        self._next_line = self._started + _LINE_S
        self._begun: set[str] = set()
        self._bar: Bar | None = None
        if sys.stdout.isatty():
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                transient=True,
            )
            self._task = self._bar.add_task(name, total=num_cells, completed=num_done)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start_cell(self, cell: Cell) -> None:
        """Shows the cell that starts."""
        if cell.benchmark == self.name:
            self._begun.add(cell.key)
        if self._bar is not None:
            self._bar.update(self._task, description=cell.label, completed=self._share())
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_S
            log.info("%d/%d  %s%s", self.num_done, self.num_cells, cell.label, self._time_left())

    def advance(self, cell: Cell) -> None:
        """Counts a cell whose row has been reported."""
        if cell.benchmark != self.name:
            return
        self.num_done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._share())

    def _share(self) -> float:
        """The number of completed cells; a cell measured in turns with others counts as half."""
        measured = self.num_done - self._first
        return self._first + (measured + max(len(self._begun), measured)) / 2

    def _time_left(self) -> str:
        measured = self._share() - self._first
        if not measured:
            return ""
        each_s = (time.monotonic() - self._started) / measured
        return f"  about {each_s * (self.num_cells - self._share()):.0f} s left"
