"""Cases of a script that end their process, or spoil its GPU, leave the others to be tried."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from scripts import cases
from scripts.cases import Case, try_all

SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
from scripts import cases
run = [lambda: ("-", "right (0)"), lambda: os._exit(3)][int(sys.argv[2])]
all_ = [cases.Case("a report", "words", run)] * 2
cases.torch.cuda.empty_cache = lambda: None
sys.exit(cases.try_all(all_, __file__, *sys.argv[1:]))
"""


@pytest.fixture
def on_gpu(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_a_case_that_ends_its_process_has_failed_alone(tmp_path, on_gpu, capsys) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(Path(cases.__file__).parents[1])))
    alone = [
        Case("one", "w", lambda: os._exit(3), True),
        Case("two", "w", lambda: os._exit(3), True),
    ]
    assert try_all(alone, str(script)) == 1
    said = capsys.readouterr().out
    assert "right (0)" in said and "FAILED: its process ended with code 3" in said


def test_after_a_gpu_is_spoilt_cases_run_in_processes_of_their_own(on_gpu, monkeypatch) -> None:
    def spoil() -> tuple[str, str]:
        monkeypatch.setattr(torch.cuda, "synchronize", spoil)
        raise RuntimeError("an illegal memory access")

    alone = []

    def noted(script: str, number: int) -> tuple[str, str]:
        alone.append(number)
        return "-", "right (0)"

    monkeypatch.setattr(cases, "_verdict_of_process", noted)
    tried = [Case("a", "w", lambda: ("-", "right (0)")), Case("b", "w", spoil)] * 2
    assert try_all(tried, "script.py") == 1
    assert alone == [2, 3]


def test_a_word_chooses_cases_and_what_is_refused_is_not_wrong(on_gpu, capsys) -> None:
    refused = Case("a", "one", lambda: ("refused", "too large"))
    wrong = Case("b", "two", lambda: ("-", "WRONG: all of it"))
    assert try_all([refused, wrong], "script.py", "one") == 0
    assert "WRONG" not in capsys.readouterr().out
    assert try_all([refused, wrong], "script.py") == 1
