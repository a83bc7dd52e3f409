"""Atomic writes, and safe reads of untrusted files.

Users who can write to a folder can leave a link, a FIFO or a device under any name in it. So files
are opened here without following a link, are checked to be plain files before they are read, and
are read up to a size limit; `folders.links` checks a folder before libraries write to it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line

_JSON_BYTES = 1 << 20  # limit of the record of a run, a job or a sweep
_TEXT_BYTES = 64 << 20  # limit of a log
_MAX_LINKS, _MAX_STEPS = 40, 10_000  # of a path; Linux follows at most 40 links


class NotPlainFile(OSError):
    """A link, FIFO, device, socket or folder, or a file larger than its reader expects."""


def open_plain(path: Path, mode: str = "rb") -> IO[bytes]:
    """Opens a plain file without following a link and without waiting for a FIFO's writer.

    Args:
        path: the last part is never followed as a link; for the parts before it, see
            `folders.links`.
        mode: `rb`, or `ab` to append to a file or make it.

    Raises:
        NotPlainFile: the path is not a plain file or, in mode `ab`, the file has a hard link.
        OSError: the file does not exist, or cannot be opened.
    """
    wanted = {"rb": os.O_RDONLY, "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT}[mode]
    try:
        descriptor = os.open(path, wanted | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a FIFO without a reader, a socket
            raise NotPlainFile(error.errno, "not a plain file", str(path)) from error
        raise
    status = os.fstat(descriptor)
    fault = None if stat.S_ISREG(status.st_mode) else "not a plain file"
    if mode == "ab" and status.st_nlink > 1:
        fault = "a file with a hard link, whose other name would change as well"
    if fault:
        os.close(descriptor)
        raise NotPlainFile(errno.EINVAL, fault, str(path))
    return os.fdopen(descriptor, mode)


def read_plain(path: Path, max_bytes: int) -> bytes:
    """Reads a plain file of at most `max_bytes` bytes.

    Raises:
        NotPlainFile: the file is larger, or not a plain file.
        OSError: the file cannot be read.
    """
    with open_plain(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise NotPlainFile(errno.EFBIG, f"larger than {max_bytes:,} bytes", str(path))
    return content


def real_path(path: Path) -> Path | None:
    """Resolves all links of a path.

    Returns:
        None for more links than the system follows, all of which `os.path.realpath` would follow,
        and for loops after a missing name, which the system itself does not find.
    """
    try:
        (resolved,) = deque(resolution_steps(path), maxlen=1)
    except TooManyLinks:
        return None
    return Path(resolved)


class TooManyLinks(OSError):
    """A path has more links than the system follows, or takes too many steps to resolve."""


def resolution_steps(path: Path) -> Iterator[str]:
    """Yields the paths, without links, through which a path is resolved; the last is the result.

    Raises:
        TooManyLinks: the path has more links than the system follows.
    """
    todo = [*reversed(path.parts if path.is_absolute() else (*Path.cwd().parts, *path.parts))]
    at, num_links = "/", 0
    for _ in range(_MAX_STEPS):
        yield at
        if not todo:
            return
        part = todo.pop()
        if part in ("", ".", ".."):
            at = os.path.dirname(at) if part == ".." else at
            continue
        step = os.path.join(at, part)
        try:
            target = os.readlink(step)
        except OSError:  # not a link, or missing
            at = step
            continue
        num_links += 1
        if num_links > _MAX_LINKS:
            break
        todo += reversed(target.split("/"))
        at = "/" if target.startswith("/") else at
    raise TooManyLinks(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def refuse_escaping_path(path: Path, named: str) -> None:
    """Refuses a relative path that leads out of the working folder by a link.

    The working folder may be untrusted, and the link may lead to any of the user's files.

    Args:
        path: path of a file or folder that will be written.
        named: the override that gives it, for the message.

    Raises:
        ConfigError: says where the path leads.
    """
    real = real_path(path)
    is_inside = real is not None and real.is_relative_to(os.path.realpath("."))
    if not path.is_absolute() and not is_inside and str(real) != os.path.abspath(path):
        raise ConfigError(
            f"{named} leads out of the working folder by a link, to {one_line(str(real))}: give "
            "that path itself if it is meant."
        )


def expand_home(key: str, path: str) -> Path:
    """Replaces a leading `~` or `~user` of a path by that home folder.

    Args:
        key: the override or variable that holds the path, for the message.
        path: the path; if the home folder is unknown, Python alone would use a folder named `~`.

    Raises:
        ConfigError: there is no such home folder, or the path is longer than the system allows.
    """
    name = path.partition("/")[0]
    if name.startswith("~"):
        # a NUL in the user's name raises ValueError
        home = os.path.expanduser(name) if "\0" not in name else ""
        if not os.path.isabs(home) or (name == "~" and os.environ.get("HOME") == ""):
            raise ConfigError(f"{key} names a home folder that is not there, got {path!r}.")
    found = os.path.expanduser(path)
    try:
        os.lstat(found)
    except (OSError, ValueError) as error:  # callers check whether the file must exist
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            # the message omits the value, which may be a secret
            raise ConfigError(
                f"{key} must be the path of a file or folder, got {len(path):,} characters, which "
                "no path can have: use a shorter one."
            ) from None
    return Path(found)


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file atomically; after an error the old file is unchanged."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """Replaces a binary file atomically; after an error the old file is unchanged."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path`, which replaces `path` unless an error occurs.

    Its name is unpredictable, and it is created exclusively.
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


def make_new_folder(path: Path) -> Path:
    """Makes a folder that did not exist, with `-2` and so on appended if the name is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder, number = path, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}-{number}")


def sync(path: Path) -> None:
    """Flushes a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """Reads a plain text file, such as the output of a process; empty if there is none."""
    try:
        return read_plain(path, _TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Writes a JSON file atomically."""
    replace_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, max_bytes: int = _JSON_BYTES) -> dict[str, Any] | None:
    """Reads the mapping in a JSON file; None if the file is missing or incomplete."""
    try:
        found = json.loads(read_plain(path, max_bytes).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
