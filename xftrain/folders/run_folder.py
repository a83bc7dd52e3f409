"""The run folder: which run it holds, and where an earlier run's files are moved.

The files of an earlier run are never mixed with those of a new one: a new run moves them into a
subfolder, `former-1` and so on, and a resumed run continues them. Files of another program that
have the names of a run's are moved there as well. All are unchanged until a run begins to train,
while it can still be refused.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from xftrain.errors import ConfigError, RunError
from xftrain.folders.finished_run import status_of
from xftrain.folders.owner import written_by_others
from xftrain.utils.files import read_json, read_plain, replace_bytes, replace_text, write_json

log = logging.getLogger(__name__)

RUN_FILE = ".run.json"  # names the run that the folder holds
JOB_FILE = ".job.json"  # the configuration of a sweep's job
HYDRA = ".hydra"
_HYDRA_FILES, _HYDRA_BYTES = ("config.yaml", "hydra.yaml", "overrides.yaml"), 1 << 20
_RECORDS = ("metrics.csv", "events.out.tfevents.*")
_TRAINED = (*_RECORDS, "checkpoints")
_TRACKED = ("wandb", "mlflow*.db*", "mlflow*-artifacts")  # files of experiment trackers
# Files of one run; benchmark rows and the log belong to the folder and are continued.
_OTHERS = ("hparams.yaml", "sample.txt", "fit-profile*", "stacks*.txt")
_FILES = (*_TRAINED, RUN_FILE, *_OTHERS)
_WRITTEN = (*_RECORDS, *_OTHERS)  # replaced
_OWN_RESULT = {"status", "error", "overrides", "run_dir"}  # keys of each `result.json`
_OF_OTHERS = "files of another program are"
_LAST = ("config.yaml", "result.json")  # moved last, since they mark a folder with an earlier run

# By real path, the content of an earlier command's Hydra files, which Hydra overwrites at startup.
_hydra_before: dict[str, dict[str, bytes]] = {}


class RunFolder:
    """One command's view of its run folder.

    Args:
        path: the run folder.
        is_kept: whether this process writes to it; only one of several ranks does.
    """

    def __init__(self, path: Path, *, is_kept: bool = True) -> None:
        self.path, self.is_kept = path, is_kept
        self.has_begun = False
        self.run_id = run_id_of(path) if is_kept else None
        self._strangers = _strangers(path) if is_kept else []
        self.notes: dict[str, str] = {}  # facts about the run, written when it begins
        self._config: str | None = None

    def keeps_record(self, status: str) -> bool:
        """Whether to keep an earlier run's record, since this run has not begun.

        Args:
            status: this run's status.
        """
        if self.has_begun:
            return False
        is_of_run = _holds_record_of_run(self.path) and (
            status == "refused" or holds_run(self.path)
        )
        return is_of_run or bool(self._strangers)

    def write_config(self, text: str) -> None:
        """Write `config.yaml`, once an earlier run's files are no longer in the folder."""
        self._config = text
        is_free = self.has_begun or not (holds_run(self.path) or self._strangers)
        if self.is_kept and is_free:
            replace_text(self.path / "config.yaml", text)

    def begin_anew(self) -> None:
        """Begin a new run, and move an earlier run's files into a subfolder."""
        if self.is_kept and holds_run(self.path):
            self._set_aside(
                _present(self.path, (*_FILES, *_TRACKED, *_LAST)), "the former run's files are"
            )
        self.set_strangers_aside()
        self._begin(secrets.token_hex(8))

    def begin_again(self, run_id: str | None = None, *, is_resumed: bool = False) -> None:
        """Resume the run that the folder holds.

        Args:
            run_id: the id in the checkpoint.
            is_resumed: whether a checkpoint of the folder is resumed, whose records are the run's
                even if the folder does not say so.
        """
        if not is_resumed:
            self.set_strangers_aside()
        self._begin(run_id or self.run_id or secrets.token_hex(8))

    def set_strangers_aside(self) -> None:
        """Move files that no run of this package has written, and a run would replace."""
        self._set_aside([path for path in self._strangers if path.exists()], _OF_OTHERS)
        self._strangers = []

    def _begin(self, run_id: str) -> None:
        self.has_begun, self.run_id = True, run_id
        _hydra_before.pop(os.path.realpath(self.path), None)
        if not self.is_kept:
            return
        (self.path / "result.json").unlink(missing_ok=True)
        write_json({**self.notes, "run": run_id}, self.path / RUN_FILE)
        if found := written_by_others(self.path, self.path / RUN_FILE):
            log.warning(
                "%s: whoever can write there could put links in the place of this run's files, and "
                "so change files of yours: choose a folder that is yours alone.",
                found,
            )
        if self._config is not None:
            self.write_config(self._config)

    def set_aside_later(self, checkpoints: Iterable[Path], copies: Iterable[str]) -> None:
        """Move files of later steps away when a run is resumed from an earlier checkpoint.

        Args:
            checkpoints: later checkpoints and their exports.
            copies: patterns of files that are truncated next, of which a copy is kept.
        """
        self._set_aside([*checkpoints], "what is later than the checkpoint is", copies)

    def _set_aside(self, moved: list[Path], said: str, copies: Iterable[str] = ()) -> None:
        copied = _present(self.path, copies)
        if not moved and not copied:
            return
        place = former_folder(self.path)
        try:
            for path in copied:
                shutil.copy2(path, place / path.name, follow_symlinks=False)
            for path in moved:
                target = place / path.relative_to(self.path)
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
            for name, content in _hydra_before.pop(os.path.realpath(self.path), {}).items():
                (place / HYDRA).mkdir(exist_ok=True)
                (place / HYDRA / name).write_bytes(content)
        except OSError as error:
            raise RunError(
                f"hydra.run.dir={self.path} holds the files of another run, which could not be "
                f"moved to {place} ({error}): choose another hydra.run.dir."
            ) from error
        names = ", ".join(path.name for path in moved or copied)
        log.info("%s in %s now: %s", said, place, names)


def run_id_of(folder: Path) -> str | None:
    """The id of the run in the folder; None if it is not recorded."""
    return note_of(folder, "run")


def note_of(folder: Path, name: str) -> str | None:
    """A note that the run in the folder wrote when it began."""
    found = (read_json(folder / RUN_FILE) or {}).get(name)
    return found if isinstance(found, str) else None


def holds_run(folder: Path) -> bool:
    """Whether the folder holds an earlier run that a new one must not replace or be mixed with.

    Such a run has completed or saved a checkpoint; one that ended before may be started again.
    """
    saved = _present(folder, ("checkpoints/*.ckpt", "checkpoints/*.safetensors"))
    return status_of(folder) == "completed" or bool(saved)


def holds_record(folder: Path) -> bool:
    """Whether the folder has a record that a refused command must not replace.

    It is the record of an earlier run, or of another program.
    """
    return _holds_record_of_run(folder) or bool(_strangers(folder))


def _holds_record_of_run(folder: Path) -> bool:
    """Whether the folder has the record of such a run, or of a stopped one."""
    status = status_of(folder)
    return status in ("completed", "stopped") or (status == "failed" and holds_run(folder))


def refuse_trained(folder: Path, what: str) -> None:
    """Refuse a command that trains nothing in the folder of a training run.

    Args:
        folder: the command's folder.
        what: the command in words, such as `a sample`.

    Raises:
        ConfigError: the folder holds a training run.
    """
    if _present(folder, _TRAINED):
        raise ConfigError(
            f"hydra.run.dir={folder} holds a training run, whose record {what} would replace: "
            "choose another folder, or leave hydra.run.dir out."
        )


def remember_hydra(folder: Path) -> None:
    """Remember an earlier command's Hydra files in this folder."""
    found = {}
    for name in _HYDRA_FILES:
        with suppress(OSError):
            found[name] = read_plain(folder / HYDRA / name, _HYDRA_BYTES)
    _hydra_before[os.path.realpath(folder)] = found


def restore_hydra() -> None:
    """Restore the earlier command's Hydra files if this command did not begin."""
    while _hydra_before:
        name, files = _hydra_before.popitem()
        if holds_record(Path(name)):
            for file, content in files.items():
                with suppress(OSError):
                    replace_bytes(Path(name, HYDRA, file), content)


def _strangers(folder: Path) -> list[Path]:
    """Files with names of a run's in a folder in which no run has begun or ended."""
    is_own = _OWN_RESULT <= (read_json(folder / "result.json") or {}).keys()
    if is_own or run_id_of(folder) is not None or (folder / JOB_FILE).is_file():
        return []
    return _present(folder, (*_WRITTEN, *_LAST))


def _present(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files and non-empty folders that match these patterns."""
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [path for path in found if not path.is_dir() or any(path.iterdir())]


def former_folder(folder: Path) -> Path:
    """Make a new subfolder for an earlier run: `former-1`, `former-2` and so on."""
    number = 1
    while True:
        place = folder / f"former-{number}"
        try:
            place.mkdir(parents=True)
            return place
        except FileExistsError:
            number += 1
