"""A shell that completes a name in a foreign folder runs nothing of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.completion import safe_completion

HOSTILE = (
    "$(touch RAN)",
    "x`touch RAN`y",
    "a$HOME",
    "b\x1b[2J",
    "c;touch RAN",
    "d\\",
    "e'f",
    "~root",
)


def answer_to(monkeypatch: pytest.MonkeyPatch, capsys, line: str, said: str) -> str:
    monkeypatch.setattr(sys, "argv", ["xftrain", "-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", line)
    with safe_completion(lambda: {"model/attn"}):
        print(said)
    return capsys.readouterr().out


def test_words_that_a_shell_expands_are_left_out(monkeypatch, capsys) -> None:
    said = " ".join([*HOSTILE, "ckpt=./runs/last.ckpt"])
    assert (
        answer_to(monkeypatch, capsys, "xftrain ckpt=./", said).split()[-1]
        == "ckpt=./runs/last.ckpt"
    )


@given(st.lists(st.text(), max_size=5))
def test_no_answer_has_a_character_that_a_shell_expands(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        out: list[str] = []
        monkeypatch.setattr(sys, "argv", ["xftrain", "-sc", "query=bash"])
        stdout = sys.stdout

        class Kept:
            def write(self, text: str) -> None:
                out.append(text)

        monkeypatch.setattr(sys, "stdout", Kept())
        try:
            with safe_completion(lambda: set()):
                sys.stdout.write(" ".join(words))
        finally:
            monkeypatch.setattr(sys, "stdout", stdout)
    assert not set("".join(out)) & set("$`\\'\"(){}[];&|<>*?!#\x1b\x00")


def test_dotted_groups_are_answered_dotted(monkeypatch, capsys) -> None:
    line, said = "xftrain model.attn=", "model/attn=naive model/attn=sdpa"
    assert answer_to(monkeypatch, capsys, line, said) == "model.attn=naive model.attn=sdpa\n"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_runs_nothing_that_a_foreign_folder_names(tmp_path: Path) -> None:
    for name in HOSTILE[:2]:
        (tmp_path / name).touch()
    (tmp_path / "harmless").touch()
    program = tmp_path / "bin" / "xftrain"
    program.parent.mkdir()
    start = "import sys; sys.argv[0] = 'xftrain'; from xftrain.cli import main; sys.exit(main())"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = f"""
    export PATH={program.parent}:$PATH PYTHONPATH={Path(__file__).parents[1]}
    eval "$(xftrain -sc install=bash)"
    COMP_WORDS=(xftrain ckpt=./) COMP_CWORD=1 COMP_LINE='xftrain ckpt=./' COMP_POINT=15
    hydra_bash_completion
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "ckpt=./harmless" in done.stdout.split(), done
    assert not (tmp_path / "RAN").exists()
