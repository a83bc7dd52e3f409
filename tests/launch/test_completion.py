"""A shell that completes a name in a foreign folder runs nothing of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xftrain.launch.completion import safe_completion

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
    with safe_completion(lambda: {"model/attn"}, lambda key: []):
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
            with safe_completion(set, lambda key: []):
                sys.stdout.write(" ".join(words))
        finally:
            monkeypatch.setattr(sys, "stdout", stdout)
    assert not set("".join(out)) & set("$`\\'\"(){}[];&|<>*?!#\x1b\x00")


def test_dotted_groups_are_answered_dotted(monkeypatch, capsys) -> None:
    line, said = "xftrain model.attn=", "model/attn=naive model/attn=sdpa"
    assert answer_to(monkeypatch, capsys, line, said) == "model.attn=naive model.attn=sdpa\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("xftrain model.", "xftrain -sc query=bash|xftrain model."),
        ("python -m xftrain model.", "python -P -m xftrain -sc query=bash|xftrain model."),
        ("python3 -m xftrain -m model.", "python3 -P -m xftrain -sc query=bash|xftrain -m model."),
        *((line, "") for line in ("./xftrain model.", "python evil.py model.", "python -m evil x")),
        *((line, "") for line in ("python ./evil.py -m xftrain m", "./python -m xftrain m")),
    ],
)
def test_bash_asks_the_installed_program_and_no_other_file(
    tmp_path: Path, monkeypatch, capsys, line: str, asked: str
) -> None:
    # Hydra's function ran `python evil.py` and `./xftrain`
    monkeypatch.setattr(sys, "argv", ["/lib/xftrain/__main__.py", "-sc", "install=bash"])
    with safe_completion(set, lambda key: []):
        print("of Hydra")
    script = capsys.readouterr().out
    assert "of Hydra" not in script
    (tmp_path / "bin").mkdir()
    for name in ("xftrain", "python", "python3"):
        said = f'#!/bin/sh\necho "{name} $*|$COMP_LINE" >> {tmp_path}/asked\necho model.attn=\n'
        for place in (tmp_path / "bin" / name, tmp_path / name, tmp_path / "evil.py"):
            place.write_text(said if place.parent.name == "bin" else f"touch {tmp_path}/RAN\n")
            place.chmod(0o755)
    word = line.split()[-1]
    command = f"""{script}
    complete -p xftrain python python3 > /dev/null || exit 1
    COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({line}) COMP_CWORD=1
    name=$(complete -p {Path(line.split()[0]).name}); name=${{name##*-F }}
    ${{name% *}} '{line.split()[0]}' '{word}'
    echo "${{COMPREPLY[@]}}"
    """
    variables = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    place = tmp_path / "asked"
    assert (place.read_text().strip() if place.exists() else "") == asked
    assert done.stdout.strip() == ("model.attn=" if asked else "")
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_installed_for_the_command_alone_unless_python_was_started(
    monkeypatch, capsys, shell: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["/bin/xftrain", "-sc", f"install={shell}"])
    with safe_completion(set, lambda key: []):
        print("of Hydra")
    script = capsys.readouterr().out
    assert "xftrain" in script and "python" not in script and "of Hydra" not in script


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_runs_nothing_that_a_foreign_folder_names(tmp_path: Path) -> None:
    for name in HOSTILE[:2]:
        (tmp_path / name).touch()
    (tmp_path / "harmless").touch()
    program = tmp_path / "bin" / "xftrain"
    program.parent.mkdir()
    start = (
        "import sys; sys.argv[0] = 'xftrain'; from xftrain.launch.cli import main; sys.exit(main())"
    )
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    script = f"""
    export PATH={program.parent}:$PATH PYTHONPATH={Path(__file__).parents[2]}
    eval "$(xftrain -sc install=bash)"
    COMP_WORDS=(xftrain ckpt=./) COMP_CWORD=1 COMP_LINE='xftrain ckpt=./' COMP_POINT=15
    _xftrain_command xftrain ckpt=./
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert "ckpt=./harmless" in done.stdout.split(), done
    assert not (tmp_path / "RAN").exists()
