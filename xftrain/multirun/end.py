"""Finishes a sweep: writes its table and plot, and reports the jobs that failed."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from xftrain.errors import first_line
from xftrain.multirun import record, table
from xftrain.multirun.command_state import Sweep
from xftrain.utils.console import say
from xftrain.utils.printable import one_line


def finish(sweep: Sweep, lost: Exception | None = None) -> str | None:
    """Writes the table and the plot of a sweep, if this command runs one.

    Args:
        sweep: the command's sweep, which has no folder in a single run.
        lost: the error of the launcher, for example if one of its processes was killed.

    Returns:
        A sentence about the jobs that failed or were lost; None if there are none.
    """
    folder = sweep.folder
    if folder is None or not folder.is_dir():
        return None
    rows = table.write_summary(folder)
    failed = [row for row in rows if row["status"] != "completed"]
    sys.stdout.write(f"{table.table(rows)}\n{one_line(str(folder / 'summary.csv'))}\n")
    _draw(rows, folder)
    if lost is not None:
        reason = first_line(lost).rstrip(".")
        sentence, missing = f"the launcher lost jobs ({reason})", "what is missing"
    elif failed:
        reason = f"job {failed[0]['job']}: " + failed[0]["error"].rstrip(".")
        sentence, missing = f"{len(failed)} of {len(rows)} jobs failed ({reason})", "them again"
    else:
        return None
    resume = shlex.quote(f"{record.RESUME_KEY}={folder}")
    whole = "" if record.is_resumable(folder) else "the same command with "
    again = f"; {whole}{resume} runs {missing}"
    return f"{sentence}{'' if sweep.is_stored else again}."


def _draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """Draws the plot of a sweep; an error is only a warning, since the sweep has ended."""
    try:
        from xftrain.multirun import plot  # imports matplotlib

        if path := plot.draw(rows, folder):
            sys.stdout.write(f"{one_line(str(path))}\n")
    except Exception as error:
        reason = " ".join(str(error).split())
        say(f"warning: no {folder / 'summary.png'} ({type(error).__name__}: {reason}).")
