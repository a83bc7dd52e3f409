"""Files that are whole or absent, and files that may come from anyone.

Whoever can write to a folder can leave a link, a FIFO or a device under any name in it. So a file
is opened here without following a link, is checked to be a plain file before it is read, and is
never larger than its reader expects; `refuse_links` checks a folder before others write to it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from xftrain.errors import ConfigError

_JSON_BYTES = 1 << 20  # of a record: of a run, a job, a sweep
_TEXT_BYTES = 64 << 20  # of a log
_REPLACED = (".ckpt", ".safetensors")  # never opened to be written, and read by open_plain alone
_MOST_ENTRIES = 500_000  # of a folder of runs; more would take long to search
_WRITTEN = re.compile(  # by a run, at the top of its folder
    r"\.hydra|\.run\.json|\.lock|\..*_said|\..*\.partial|.*\.log|checkpoints|plots|former-.*|"
    r"config\.yaml|hparams\.yaml|"
    r"result\.json|metrics\.csv|events\.out\..*|stacks.*\.txt|fit-.*|.*\.trace\.json|sample\.txt|"
    r"rows\.jsonl|results\.csv|report\.md|environment\.json"
).fullmatch


class NotPlainFile(OSError):
    """A link, FIFO, device, socket or folder, or a file larger than its reader expects."""


def open_plain(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a plain file without following a link and without waiting for a FIFO's writer.

    Args:
        path: the last part is never followed as a link; for the parts before it, see
            `refuse_links`.
        mode: `rb`, or `ab` to append to a file or make it.

    Raises:
        NotPlainFile: it is something else than a plain file; to append, also one with a hard link.
        OSError: it does not exist, or may not be opened.
    """
    wanted = {"rb": os.O_RDONLY, "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT}[mode]
    try:
        descriptor = os.open(path, wanted | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a FIFO without a reader, a socket
            raise NotPlainFile(error.errno, "not a plain file", str(path)) from error
        raise
    status = os.fstat(descriptor)
    said = None if stat.S_ISREG(status.st_mode) else "not a plain file"
    if mode == "ab" and status.st_nlink > 1:
        said = "a file with another name, which would change as well"
    if said:
        os.close(descriptor)
        raise NotPlainFile(errno.EINVAL, said, str(path))
    return os.fdopen(descriptor, mode)


def read_plain(path: Path, max_bytes: int) -> bytes:
    """The content of a plain file of at most that many bytes.

    Raises:
        NotPlainFile: it is larger, or no plain file.
        OSError: it cannot be read.
    """
    with open_plain(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise NotPlainFile(errno.EFBIG, f"larger than {max_bytes:,} bytes", str(path))
    return content


def real_path(path: Path) -> Path | None:
    """Where a path leads once all links are followed.

    Returns:
        None where there are more links in a row than the system follows, 40 in Linux: Python would
        follow each by a call within the one before.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
    try:
        return Path(os.path.realpath(path))
    except RecursionError:
        return None


def expanded(key: str, path: str) -> Path:
    """The path with a `~` or `~user` at its beginning replaced by that home folder.

    Args:
        key: the override or variable that holds the path, for the message.
        path: where no home folder is known, Python itself would make one named `~`.

    Raises:
        ConfigError: there is no such home folder.
    """
    name = path.partition("/")[0]
    if name.startswith("~"):
        # a NUL in a user's name is an error of its own
        home = os.path.expanduser(name) if "\0" not in name else ""
        if not os.path.isabs(home) or (name == "~" and os.environ.get("HOME") == ""):
            raise ConfigError(f"{key} names a home folder that is not there, got {path!r}.")
    return Path(os.path.expanduser(path))


def refuse_links(folder: Path, key: str, *, may_hold_data: bool = True) -> None:
    """Refuse a folder with a link that leads out of it, or a FIFO, before anything writes there.

    Lightning, TensorBoard, Hydra and `logging` open files by name, follow links, and wait for the
    reader of a FIFO.

    Args:
        folder: may be named through links; nothing is done where it does not exist.
        key: the override that names the folder, for the message.
        may_hold_data: a folder that the working directory is in may be the user's project, with
            links to data in it; there only the names that a run writes are looked at.

    Raises:
        ConfigError: the first such link, FIFO, device or socket, or file with a hard link.
    """
    top = real_path(folder)
    if top is None:
        raise ConfigError(
            f"{key}={folder} leads in a circle of links, or through too many: choose another "
            "folder."
        )
    for entry in _entries(top, may_hold_data=may_hold_data):
        path = Path(entry.path)
        named = f"{key}={folder} has {{}} in it, {path.relative_to(top)}, "
        if entry.is_symlink():
            place = real_path(path)
            if place is None:
                raise ConfigError(
                    f"{named.format('a link')}that leads in a circle, or to too many other links: "
                    "remove it or choose another folder."
                )
            if not place.is_relative_to(top):
                raise ConfigError(
                    f"{named.format('a link')}that leads out of that folder: files behind it could "
                    "be overwritten; remove the link or choose another folder."
                )
        elif _has_other_name(entry):
            raise ConfigError(
                f"{named.format('a file')}with a hard link, so that a file elsewhere could change "
                "with it; copy the folder or choose another."
            )
        elif not (entry.is_dir() or entry.is_file() or entry.name.endswith(_REPLACED)):
            raise ConfigError(
                f"{named.format('a FIFO, a device or a socket')}at which a run could wait for "
                "ever; remove it or choose another folder."
            )


def _has_other_name(entry: os.DirEntry[str]) -> bool:
    """Whether a file that is written in place has a hard link."""
    if entry.name.endswith(_REPLACED) or not entry.is_file(follow_symlinks=False):
        return False
    with suppress(OSError):  # it has just been removed
        return entry.stat(follow_symlinks=False).st_nlink > 1
    return False


@contextmanager
def _listed(folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of a folder; none where there is none.

    Raises:
        ConfigError: it cannot be listed. It might be entered all the same, and files in it opened.
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


def _entries(top: Path, *, may_hold_data: bool) -> Iterator[os.DirEntry[str]]:
    """What is in a folder of runs and the folders in it, nearest first."""
    is_own = may_hold_data and Path.cwd().is_relative_to(top)
    folders, count = deque([top]), 0
    while folders:
        with _listed(folders.popleft()) as entries:
            for entry in entries:
                count += 1
                if count > _MOST_ENTRIES:
                    raise ConfigError(
                        f"{top} holds more than {_MOST_ENTRIES:,} files, which is no folder of "
                        "runs: choose another."
                    )
                if is_own and entry.path == str(top / entry.name) and not _WRITTEN(entry.name):
                    continue
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))


def replace_text(path: Path, text: str) -> None:
    """Writes beside the place and renames; an error leaves what was there."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to, renamed at the end; an error leaves what was there.

    Its name cannot be foreseen, and nothing that has the name already is opened.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield partial
        partial.replace(path)
    except BaseException:  # a signal too
        with suppress(OSError):
            partial.unlink()
        raise


def new_folder(path: Path) -> Path:
    """Makes a folder that nothing else has made; `-2` and so on after its name tell it apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place, number = path, 1
    while True:
        try:
            place.mkdir()
            return place
        except FileExistsError:
            number += 1
            place = path.with_name(f"{path.name}-{number}")


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """The text of a plain file, as a process's last words; empty where there is none."""
    try:
        return read_plain(path, _TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """The file, whole or absent."""
    replace_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, max_bytes: int = _JSON_BYTES) -> dict[str, Any] | None:
    """The mapping that the file holds; None where there is none, or half of one."""
    try:
        found = json.loads(read_plain(path, max_bytes).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
