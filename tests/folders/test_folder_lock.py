"""A folder is written to by one command at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import one_sentence
from tests.train.runs import run
from xftrain.errors import ConfigError
from xftrain.folders import lock
from xftrain.folders.lock import LOCK_FILE
from xftrain.folders.reserved import ReservedFolders

KEY = "hydra.run.dir"


@pytest.fixture
def reserved() -> Iterator[ReservedFolders]:
    folders = ReservedFolders()
    yield folders
    folders.release()


@pytest.fixture
def other_process(tmp_path) -> Iterator[Path]:
    """A folder whose lock another process holds, as far as the kernel can tell."""
    with (tmp_path / LOCK_FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b"process 7 on \x1b[31mhost\n")
        file.flush()
        yield tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_in_use_is_refused_with_who_uses_it(reserved, other_process):
    with pytest.raises(ConfigError, match=r"in use by another command \(process 7 on \\x1b\[31m"):
        reserved.reserve(other_process, KEY)


def test_a_run_in_a_folder_in_use_changes_nothing_there(other_process):
    before = contents(other_process)
    with pytest.raises(ConfigError, match="in use by another command"):
        run(other_process, "max_steps=1")
    assert contents(other_process) == before


@pytest.mark.parametrize("kind", ["train", "sample", "doctor", "benchmark"])
def test_a_command_in_a_folder_in_use_is_refused_before_hydra_writes(
    command, runner, tmp_path, kind
):
    # two runs were both completed, and their rows and checkpoints were mixed
    (tmp_path / "r" / ".hydra").mkdir(parents=True)
    (tmp_path / "r" / ".hydra" / "config.yaml").write_text("of the first")
    with (tmp_path / "r" / LOCK_FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = contents(tmp_path)
        ended = command("--config-name", kind, "hydra.run.dir=r")
        assert "in use by another command" in one_sentence(ended, 2)
        assert contents(tmp_path) == before
    assert not runner.calls
    if kind == "train":
        assert command("hydra.run.dir=r").code == 0  # once the first has ended


def test_a_sweep_in_the_folder_of_another_is_refused(command, jobs, tmp_path):
    (tmp_path / "s").mkdir()
    with (tmp_path / "s" / LOCK_FILE).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = command("-m", "seq=8,16", "hydra.sweep.dir=s")
    assert "hydra.sweep.dir=s is in use" in one_sentence(ended, 2)
    assert not jobs and [path.name for path in (tmp_path / "s").iterdir()] == [LOCK_FILE]


def test_printing_a_configuration_needs_no_lock(command, other_process):
    assert command("--cfg", "job", f"hydra.run.dir={other_process}").code == 0


def test_a_reserved_folder_is_used_by_one_run_of_the_process_at_a_time(reserved, tmp_path):
    reserved.reserve(tmp_path, KEY)
    reserved.reserve(tmp_path, KEY)
    with reserved.locked(tmp_path, KEY), pytest.raises(ConfigError), reserved.locked(tmp_path, KEY):
        pass
    with reserved.locked(tmp_path, KEY):
        pass


def test_a_lock_ends_with_its_holder(reserved, tmp_path):
    with reserved.locked(tmp_path, KEY):
        pass
    with reserved.locked(tmp_path, KEY):
        assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_a_forked_child_does_not_hold_the_lock_of_its_parent(reserved, tmp_path):
    # it would be held until the child ends, which may outlive a run that is killed
    reserved.reserve(tmp_path, KEY)
    (ready, say_ready), (over, say_over) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.write(say_ready, b".")
        os.read(over, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        lock._locked_files.pop().close()  # as the end of this process would
        with (tmp_path / LOCK_FILE).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.write(say_over, b".")
        os.waitpid(child, 0)
        for pipe in (ready, say_ready, over, say_over):
            os.close(pipe)


def test_a_job_waits_for_the_end_of_the_one_before(reserved, tmp_path, monkeypatch):
    file = (tmp_path / LOCK_FILE).open("ab")
    fcntl.flock(file, fcntl.LOCK_EX)
    monkeypatch.setattr("xftrain.folders.lock.time.sleep", lambda s: file.close())
    reserved.reserve(tmp_path, KEY, wait_s=5.0)


def test_a_file_system_without_locks_is_said_and_used(reserved, tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("xftrain.folders.lock.fcntl.flock", no_locks)
    reserved.reserve(tmp_path, KEY)
    with reserved.locked(tmp_path, KEY):
        pass
    assert caplog.text.count("has no locks (No locks available)") == 1


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_lock_that_is_no_plain_file_is_refused(reserved, tmp_path, kind):
    place, target = tmp_path / "r" / LOCK_FILE, tmp_path / "target"
    place.parent.mkdir()
    target.write_text("of somebody else")
    {"link": lambda: place.symlink_to(target), "fifo": lambda: os.mkfifo(place)}.get(
        kind, place.mkdir
    )()
    with pytest.raises((ConfigError, OSError)):
        reserved.reserve(place.parent, KEY)
    assert target.read_text() == "of somebody else"
