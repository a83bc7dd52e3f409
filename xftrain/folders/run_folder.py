"""The run folder: which run it holds, and where an earlier run's files are moved.

The files of an earlier run are never mixed with those of a new one: a new run moves them into a
subfolder, `former-1` and so on, and a resumed run appends to them. Files of another program that
have the names of a run's are moved there as well. Nothing is moved before training starts, as long
as the run can still be refused.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from xftrain.errors import ConfigError, RunError
from xftrain.folders.finished_run import status_of
from xftrain.folders.owner import writable_by_other_users
from xftrain.folders.reserved import HYDRA, ReservedFolders
from xftrain.utils.files import read_json, replace_bytes, replace_text, write_json

log = logging.getLogger(__name__)

RUN_FILE = ".run.json"  # names the run that the folder holds
JOB_FILE = ".job.json"  # the configuration of a sweep's job
_RECORDS = ("metrics.csv", "events.out.tfevents.*")
_TRAINED = (*_RECORDS, "checkpoints")
_TRACKED = ("wandb", "mlflow*.db*", "mlflow*-artifacts")  # files of experiment trackers
# Files of one run; benchmark rows and the log belong to the folder, and later runs append to them.
_RUN_FILES = ("hparams.yaml", "sample.txt", "fit-profile*", "stacks*.txt")
_MOVED = (*_TRAINED, RUN_FILE, *_RUN_FILES)
_OVERWRITTEN = (*_RECORDS, *_RUN_FILES)  # replaced
_OWN_RESULT = {"status", "error", "overrides", "run_dir"}  # keys of each `result.json`
_FOREIGN = "files of another program are"
_MOVED_LAST = (
    "config.yaml",
    "result.json",
)  # moved last, since they mark a folder with an earlier run


class RunFolder:
    """One command's view of its run folder.

    Args:
        path: the run folder.
        is_writer: whether this process writes to it; only one of several ranks does.
        reserved: the folders that the command line has locked; None if the run was started from
            Python.
    """

    def __init__(
        self, path: Path, *, is_writer: bool = True, reserved: ReservedFolders | None = None
    ) -> None:
        self.path, self.is_writer = path, is_writer
        self.reserved = ReservedFolders() if reserved is None else reserved
        self.has_started = False
        self.run_id = run_id_of(path) if is_writer else None
        self._foreign_files = _find_foreign_files(path) if is_writer else []
        self.notes: dict[str, str] = {}  # facts about the run, written when it starts
        self._config: str | None = None

    def keeps_record(self, status: str) -> bool:
        """Whether to keep an earlier run's record, since this run has not started.

        Args:
            status: this run's status.
        """
        if self.has_started:
            return False
        is_of_run = _holds_record_of_run(self.path) and (
            status == "refused" or holds_run(self.path)
        )
        return is_of_run or bool(self._foreign_files)

    def write_config(self, text: str) -> None:
        """Writes `config.yaml`, once an earlier run's files are no longer in the folder."""
        self._config = text
        is_free = self.has_started or not (holds_run(self.path) or self._foreign_files)
        if self.is_writer and is_free:
            replace_text(self.path / "config.yaml", text)

    def start_new_run(self) -> None:
        """Starts a new run, and moves an earlier run's files into a subfolder."""
        if self.is_writer and holds_run(self.path):
            self._move_to_former(
                _present(self.path, (*_MOVED, *_TRACKED, *_MOVED_LAST)),
                "the former run's files are",
            )
        self.move_foreign_files()
        self._start(secrets.token_hex(8))

    def resume_run(self, run_id: str | None = None, *, is_resumed: bool = False) -> None:
        """Resumes the run that the folder holds.

        Args:
            run_id: the id in the checkpoint.
            is_resumed: whether a checkpoint of the folder is resumed, whose records are the run's
                even if the folder does not say so.
        """
        if not is_resumed:
            self.move_foreign_files()
        self._start(run_id or self.run_id or secrets.token_hex(8))

    def move_foreign_files(self) -> None:
        """Moves files away that a run would replace and no run of this package has written."""
        self._move_to_former([path for path in self._foreign_files if path.exists()], _FOREIGN)
        self._foreign_files = []

    def _start(self, run_id: str) -> None:
        self.has_started, self.run_id = True, run_id
        self.reserved.pop_hydra_files(self.path)
        if not self.is_writer:
            return
        (self.path / "result.json").unlink(missing_ok=True)
        write_json({**self.notes, "run": run_id}, self.path / RUN_FILE)
        if found := writable_by_other_users(self.path, self.path / RUN_FILE):
            log.warning(
                "%s: whoever can write there could replace this run's files by links, through "
                "which it would change your files: choose a folder that only you can write to.",
                found,
            )
        if self._config is not None:
            self.write_config(self._config)

    def move_later_files(self, checkpoints: Iterable[Path], copies: Iterable[str]) -> None:
        """Moves the files of later steps away when a run is resumed from an earlier checkpoint.

        Args:
            checkpoints: later checkpoints and their exports.
            copies: patterns of files that are truncated next, of which a copy is kept.
        """
        self._move_to_former([*checkpoints], "the files of steps after the checkpoint are", copies)

    def _move_to_former(self, moved: list[Path], subject: str, copies: Iterable[str] = ()) -> None:
        copied = _present(self.path, copies)
        if not moved and not copied:
            return
        former = make_former_folder(self.path)
        try:
            for path in copied:
                shutil.copy2(path, former / path.name, follow_symlinks=False)
            for path in moved:
                target = former / path.relative_to(self.path)
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
            for name, content in self.reserved.pop_hydra_files(self.path).items():
                (former / HYDRA).mkdir(exist_ok=True)
                (former / HYDRA / name).write_bytes(content)
        except OSError as error:
            raise RunError(
                f"hydra.run.dir={self.path} holds the files of another run, which could not be "
                f"moved to {former} ({error}): choose another hydra.run.dir."
            ) from error
        names = ", ".join(path.name for path in moved or copied)
        log.info("%s in %s now: %s", subject, former, names)


def run_id_of(folder: Path) -> str | None:
    """The id of the run in the folder; None if it is not recorded."""
    return note_of(folder, "run")


def note_of(folder: Path, name: str) -> str | None:
    """A note that the run in the folder wrote when it started."""
    found = (read_json(folder / RUN_FILE) or {}).get(name)
    return found if isinstance(found, str) else None


def holds_run(folder: Path) -> bool:
    """Whether the folder holds an earlier run that a new one must not replace or be mixed with.

    Such a run has completed or saved a checkpoint; one that ended earlier may be started again.
    """
    saved = _present(folder, ("checkpoints/*.ckpt", "checkpoints/*.safetensors"))
    return status_of(folder) == "completed" or bool(saved)


def holds_record(folder: Path) -> bool:
    """Whether the folder has a record that a refused command must not replace.

    It is the record of an earlier run, or of another program.
    """
    return _holds_record_of_run(folder) or bool(_find_foreign_files(folder))


def _holds_record_of_run(folder: Path) -> bool:
    """Whether the folder has the record of a completed, a stopped, or a failed but saved run."""
    status = status_of(folder)
    return status in ("completed", "stopped") or (status == "failed" and holds_run(folder))


def refuse_training_folder(folder: Path, what: str) -> None:
    """Refuses a command that trains nothing in the folder of a training run.

    Args:
        folder: the command's folder.
        what: the command, as the message names it, such as `a sample`.

    Raises:
        ConfigError: the folder holds a training run.
    """
    if _present(folder, _TRAINED):
        raise ConfigError(
            f"hydra.run.dir={folder} holds a training run, whose record {what} would replace: "
            "choose another folder, or leave hydra.run.dir out."
        )


def restore_hydra(reserved: ReservedFolders) -> None:
    """Restores the earlier command's Hydra files if this command did not start."""
    for folder in reserved.folders_with_hydra_files():
        files = reserved.pop_hydra_files(folder)
        if holds_record(folder):
            for name, content in files.items():
                with suppress(OSError):
                    replace_bytes(folder / HYDRA / name, content)


def _find_foreign_files(folder: Path) -> list[Path]:
    """Files with the names of a run's files, in a folder where no run has started or ended."""
    is_own = _OWN_RESULT <= (read_json(folder / "result.json") or {}).keys()
    if is_own or run_id_of(folder) is not None or (folder / JOB_FILE).is_file():
        return []
    return _present(folder, (*_OVERWRITTEN, *_MOVED_LAST))


def _present(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files and non-empty folders that match these patterns."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [path for path in found if not path.is_dir() or any(path.iterdir())]


def make_former_folder(folder: Path) -> Path:
    """Makes a new subfolder for an earlier run: `former-1`, `former-2` and so on."""
    number = 1
    while True:
        place = folder / f"former-{number}"
        try:
            place.mkdir(parents=True)
            return place
        except FileExistsError:
            number += 1
