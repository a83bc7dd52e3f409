"""Commands that are killed at random moments, started again until they are done, and compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.reliability.kill_cases import Case, Kind
from tests.reliability.same_run import rows_differ, weights_differ
from xftrain.benchmark.rows import read_rows

_MOST_IN_A_ROW = 3
_LIMIT_S = 900.0  # of one command, on a machine that others use as well
_SURVIVORS_S = 60.0  # for the ranks whose neighbor was killed to end by themselves


class Harness:
    """Runs one kind of command in a folder.

    Args:
        name: of the kind.
        kind: the command.
        folder: where its runs go; the uninterrupted one is kept there.
        seed: of the moments.
    """

    def __init__(self, name: str, kind: Kind, folder: Path, seed: int) -> None:
        self.name, self.kind, self.folder, self.seed = name, kind, folder, seed
        self.whole = folder / "whole"

    def wall_s(self) -> float:
        """How long the uninterrupted command takes; runs it, where that has not been done."""
        noted = self.folder / "wall_s.json"
        if noted.is_file():
            return float(json.loads(noted.read_text(encoding="utf-8")))
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        self._finish(self.whole)
        return self._note_wall_s(time.monotonic() - began)

    def reference(self, place: Path) -> Path:
        """The uninterrupted command, with the attention that the killed one has ended with.

        A command that is killed before its first save begins anew, and `auto` measures anew.
        """
        kernels = [_kernel(folder) for folder in (self.whole, place)]
        if self.kind.runs != (".",) or kernels[0] == kernels[1]:
            return self.whole
        backend = next(name for name in ("naive", "sdpa", "") if kernels[1].startswith(name))
        whole = self.folder / f"whole_{backend or 'xformers'}"
        if not (whole / "result.json").is_file():
            self._finish(whole, more=[f"model.attn={backend or 'xformers'}"])
        return whole

    def _note_wall_s(self, seconds: float) -> float:
        (self.folder / "wall_s.json").write_text(json.dumps(seconds), encoding="utf-8")
        return seconds

    def case(self, number: int, most_kills: int) -> Case:
        """Kills a command up to so many times, lets it end and compares."""
        draw = random.Random(f"{self.seed} {self.name} {number}")
        case, place = Case(self.name, number), self.folder / str(number)
        shutil.rmtree(place, ignore_errors=True)  # of a case that was not ended
        wall_s = self.wall_s()
        wanted = min(most_kills, draw.randint(1, _MOST_IN_A_ROW))
        words, is_done = self.kind.words(place), False
        for _ in range(wanted):
            began = time.monotonic()
            process = self._start(words, place)
            moment = draw.uniform(0.0, wall_s)
            kills_one = self.kind.kills_one and draw.random() < 0.5
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                case.hits.append(_phase(place, self.kind))
                self._kill(process, case, draw if kills_one else None)
            else:  # the machine was slower when the time was taken
                is_done = process.returncode == 0
                if not case.hits:
                    self._note_wall_s(time.monotonic() - began)
                break
            words = self.kind.resume(place)
        if not is_done:
            self._finish(place, again=bool(case.hits))
        self._compare(case, place)
        return case

    def _start(self, words: list[str], place: Path) -> subprocess.Popen[bytes]:
        with (self.folder / f"{place.name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "xftrain", *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _finish(self, place: Path, *, again: bool = False, more: Sequence[str] = ()) -> None:
        words = [*(self.kind.resume(place) if again else self.kind.words(place)), *more]
        process = self._start(words, place)
        try:
            code = process.wait(_LIMIT_S)
        except subprocess.TimeoutExpired:
            _kill_session(process.pid)
            process.wait()
            code = None
        if code != 0:
            log = self.folder / f"{place.name}.log"
            raise AssertionError(f"ended with {code}: {' '.join(words)}; its output is in {log}")

    def _kill(
        self, process: subprocess.Popen[bytes], case: Case, one: random.Random | None
    ) -> None:
        """All processes of the command, or one of them, after which the others are to end."""
        if one is not None:
            os.kill(one.choice(_session(process.pid) or [process.pid]), signal.SIGKILL)
            began = time.monotonic()
            while _session(process.pid) and time.monotonic() - began < _SURVIVORS_S:
                process.poll()
                time.sleep(0.05)
            case.survivors_s = max(case.survivors_s, round(time.monotonic() - began, 1))
        _kill_session(process.pid)
        process.wait()

    def _compare(self, case: Case, place: Path) -> None:
        reference = self.reference(place)
        for pattern in self.kind.runs:
            whole, found = (
                [root] if pattern == "." else sorted(root.glob(pattern))
                for root in (reference, place)
            )
            if len(whole) != len(found):
                case.rows.append(f"{len(found)} folders {pattern}, not {len(whole)}")
            for one, two in zip(whole, found, strict=False):
                case.weights += weights_differ(one, two)
                case.rows += rows_differ(one, two)
        if self.name == "sweep":
            tables = [
                (root / "summary.csv").read_text(encoding="utf-8").count("\n")
                for root in (self.whole, place)
            ]
            if tables[0] != tables[1]:
                case.rows.append(f"summary.csv: {tables[1]} lines, not {tables[0]}")
        if self.name == "benchmark":
            rows = [
                sorted((row["sweep"], row["cell"], row["status"]) for row in read_rows(root))
                for root in (self.whole, place)
            ]
            case.rows += [f"row {row} is missing" for row in rows[0] if row not in rows[1]]
            case.rows += [f"row {row} is new" for row in rows[1] if row not in rows[0]]
            case.rows += [f"row {row} twice" for row in set(rows[1]) if rows[1].count(row) > 1]


def _kernel(folder: Path) -> str:
    """The attention kernel that a run has ended with."""
    path = folder / "result.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["kernel"]) if path.is_file() else ""


def _phase(place: Path, kind: Kind) -> str:
    """Where a command is, as its folder tells."""
    if not place.exists():
        return "before its folder"
    if list(place.rglob("*.partial")):
        return "inside a save"
    if list(place.rglob("result.json")) and kind.runs == (".",):
        return "at its end"
    has_saved = list(place.rglob("last.ckpt")) or (not kind.runs and read_rows(place))
    return "between saves" if has_saved else "before the first save"


def _session(leader: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def _kill_session(leader: int) -> None:
    """Again until none is left, as a process may start another meanwhile."""
    while members := _session(leader):
        for member in members:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
