"""Refuses links in an untrusted folder before anything is written to it."""

from __future__ import annotations

import os
import re
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xftrain.errors import ConfigError
from xftrain.utils.files import real_path, resolution_steps

# Files that a run replaces atomically, and reads only with `open_plain`.
_REPLACED_ATOMICALLY = (".ckpt", ".safetensors")
_MAX_ENTRIES = 500_000  # limit for a folder of runs; more would take long to search
_WRITTEN_NAMES = re.compile(  # names that a run writes at the top of its folder
    r"\.hydra|\.run\.json|\.lock|\..*_said|\..*\.partial|.*\.log|checkpoints|plots|former-.*|"
    r"config\.yaml|hparams\.yaml|"
    r"result\.json|metrics\.csv|events\.out\..*|stacks.*\.txt|fit-.*|.*\.trace\.json|sample\.txt|"
    r"rows\.jsonl|results\.csv|report\.md|environment\.json|"
    r"wandb|mlflow(-\d+)?\.db.*|mlflow(-\d+)?-artifacts"
).fullmatch
_FILE_NAMES = re.compile(  # those of them that are files
    r"\.run\.json|\.job\.json|\.lock|\..*_said|.*\.log|config\.yaml|hparams\.yaml|result\.json|"
    r"metrics\.csv|events\.out\..*|stacks.*\.txt|sample\.txt|"
    r"rows\.jsonl|results\.csv|report\.md|environment\.json|mlflow(-\d+)?\.db.*"
).fullmatch


def refuse_links(folder: Path, key: str, *, may_hold_data: bool = True) -> None:
    """Refuses a folder with a link that leads out of it, or a FIFO, before anything writes there.

    Lightning, TensorBoard, Hydra and `logging` open files by name, follow links, and wait for the
    reader of a FIFO.

    Args:
        folder: the folder, whose own path may have links; one that does not exist is accepted.
        key: the override that names the folder, for the message.
        may_hold_data: whether the folder may be the user's project, with links to data, if it
            holds the working directory; then only the names that a run writes are checked, and a
            link at one of them may lead only to another of them.

    Raises:
        ConfigError: names the first such link, FIFO, device or socket, or file with a hard link.
    """
    name = str(folder)
    if name.startswith("~") or os.path.expandvars(os.path.abspath(name)) != os.path.abspath(name):
        raise ConfigError(
            f"{key}={name} would be another folder to Lightning, which expands ~ and $NAME in it: "
            "give the expanded path, or rename the folder."
        )
    top = real_path(folder)
    if top is None:
        raise ConfigError(
            f"{key}={folder} leads in a circle of links, or through too many: choose another "
            "folder."
        )
    is_own = may_hold_data and Path.cwd().is_relative_to(top)
    for entry in _entries(top, is_own=is_own):
        path = place = Path(entry.path)
        named = f"{key}={folder} has {{}} in it, {path.relative_to(top)}, "
        if entry.is_symlink():
            found = real_path(path)
            if found is None:
                raise ConfigError(
                    f"{named.format('a link')}that leads in a circle, or to too many other links: "
                    "remove it or choose another folder."
                )
            if _passes_proc(path):
                raise ConfigError(
                    f"{named.format('a link')}whose place is another one for each process: remove "
                    "it or choose another folder."
                )
            if not found.is_relative_to(top):
                raise ConfigError(
                    f"{named.format('a link')}that leads out of that folder: files behind it could "
                    "be overwritten; remove the link or choose another folder."
                )
            if is_own and not _WRITTEN_NAMES("".join(found.relative_to(top).parts[:1])):
                raise ConfigError(
                    f"{named.format('a link')}that leads to what no run has written, which could "
                    "be overwritten: remove the link or choose another folder."
                )
            place = found
        if path.parent == top and _FILE_NAMES(entry.name) and place.is_dir():
            raise ConfigError(
                f"{named.format('a folder')}where a run writes a file: remove it or choose another "
                "folder."
            )
        # a link of another name to such a file would be written through
        if not (
            entry.name.endswith(_REPLACED_ATOMICALLY) and place.name.endswith(_REPLACED_ATOMICALLY)
        ):
            _refuse_special(place, named, is_link=entry.is_symlink())


def _passes_proc(path: Path) -> bool:
    """Whether a link is resolved by way of /proc, where `self` differs for each process."""
    return any(f"{step}/".startswith("/proc/") for step in resolution_steps(path))


def _refuse_special(place: Path, named: str, *, is_link: bool) -> None:
    """Refuses a FIFO, and a file with a hard link.

    Args:
        place: the resolved path of the file.
        named: the beginning of the error sentence.
        is_link: whether a link in the folder leads there.
    """
    try:
        status = place.lstat()
    except OSError:  # the file has just been removed, or the link is dangling
        return
    if stat.S_ISDIR(status.st_mode):
        return
    what = "a link to a file" if is_link else "a file"
    if not stat.S_ISREG(status.st_mode):
        what = f"{'a link to ' if is_link else ''}a FIFO, a device or a socket"
        raise ConfigError(
            f"{named.format(what)}at which a run could wait for ever: remove it or choose another "
            "folder."
        )
    if status.st_nlink > 1:
        raise ConfigError(
            f"{named.format(what)}with a hard link, so that a file elsewhere could change with it; "
            "copy the folder or choose another."
        )


@contextmanager
def _listed(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of a folder; none if it does not exist.

    Raises:
        ConfigError: the folder cannot be listed, though files in it might still be opened.
    """
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        yield iter(())
        return
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be searched for links ({error.strerror}): make it readable or choose "
            "another folder."
        ) from error
    with entries:
        yield entries


def _entries(top: Path, *, is_own: bool) -> Iterator[os.DirEntry[str]]:
    """Walks a folder of runs breadth-first.

    Args:
        top: the resolved path of the folder.
        is_own: whether the folder may hold the user's own files, which are skipped.
    """
    folders, count = deque([top]), 0
    while folders:
        with _listed(folders.popleft()) as entries:
            for entry in entries:
                count += 1
                if count > _MAX_ENTRIES:
                    raise ConfigError(
                        f"{top} holds more than {_MAX_ENTRIES:,} files, which is no folder of "
                        "runs: choose another."
                    )
                if (
                    is_own
                    and entry.path == str(top / entry.name)
                    and not _WRITTEN_NAMES(entry.name)
                ):
                    continue
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
