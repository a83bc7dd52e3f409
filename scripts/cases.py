"""Runs test cases on a GPU one by one, in a subprocess if a case may make the GPU unusable."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xftrain.benchmark.tables import table

_ALONE = "--alone"  # with a case's number, runs that case and prints its verdict
_SECONDS = 300  # timeout of a case in its own process

Verdict = tuple[str, str]  # (kernel, result)


@dataclass(frozen=True)
class Case:
    """A bug report and the call that reproduces it.

    Attributes:
        in_own_process: whether the case may leave the GPU unusable for its process.
    """

    report: str
    description: str
    run: Callable[[], Verdict]
    in_own_process: bool = False


def try_all(cases: Sequence[Case], script: str, *arguments: str) -> int:
    """Runs the cases and prints their table; returns 1 if a case is wrong.

    Args:
        cases: all cases.
        script: the calling script, which is started again for a case in its own process.
        arguments: text that selects the cases whose report or description contains it.
    """
    if arguments[:1] == (_ALONE,):
        print(json.dumps(_verdict(cases[int(arguments[1])])))
        return 0
    pattern = "".join(arguments[:1])
    lines, is_wrong, is_usable = [], False, True
    for number, case in enumerate(cases):
        if pattern not in f"{case.report} {case.description}":
            continue
        kernel, result = "-", "skipped: needs an NVIDIA GPU"
        if torch.cuda.is_available():
            if case.in_own_process and is_usable:
                torch.cuda.empty_cache()  # frees memory for the other process
            if case.in_own_process or not is_usable:
                kernel, result = _verdict_of_process(script, number)
            else:
                kernel, result = _verdict(case)
                is_usable = _gpu_is_usable()
        is_wrong |= result.startswith(("WRONG", "FAILED"))
        lines.append([case.report, case.description, kernel, result])
        print(" | ".join(lines[-1]), file=sys.stderr, flush=True)
    print(table(["report", "case", "kernel", "result"], lines))
    return int(is_wrong)


def _verdict(case: Case) -> Verdict:
    try:
        torch.manual_seed(0)
        torch.cuda.empty_cache()
        return case.run()
    except Exception as error:  # run the other cases nevertheless
        return "-", f"FAILED: {type(error).__name__}: {error}".splitlines()[0]


def _verdict_of_process(script: str, number: int) -> Verdict:
    command = [sys.executable, script, _ALONE, str(number)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "-", f"FAILED: not done after {_SECONDS} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return "-", f"FAILED: its process ended with code {done.returncode}"
    kernel, result = json.loads(lines[-1])
    return kernel, result


def _gpu_is_usable() -> bool:
    """Whether this process can still use the GPU, as none can after an illegal memory access."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True
