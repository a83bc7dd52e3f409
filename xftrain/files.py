"""Files that are whole or absent, and files that may come from anyone.

Whoever can write to a folder can leave a link, a FIFO or a device under any name in it. So a file
is opened here without following a link, is checked to be a plain file before it is read, and is
never larger than its reader expects; `refuse_links` checks a folder before others write to it.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from xftrain.errors import ConfigError

_JSON_BYTES = 64 << 20  # no JSON file that this package writes is larger


class NotPlainFile(OSError):
    """A link, FIFO, device, socket or folder, or a file larger than its reader expects."""


def open_plain(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a plain file without following a link and without waiting for a FIFO's writer.

    Args:
        path: the last part is never followed as a link; for the parts before it, see
            `refuse_links`.
        mode: `rb`, or `ab` to append to a file or make it.

    Raises:
        NotPlainFile: it is something else than a plain file.
        OSError: it does not exist, or may not be opened.
    """
    wanted = {"rb": os.O_RDONLY, "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT}[mode]
    try:
        descriptor = os.open(path, wanted | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a FIFO without a reader, a socket
            raise NotPlainFile(error.errno, "not a plain file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotPlainFile(errno.EINVAL, "not a plain file", str(path))
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


def refuse_links(folder: Path, key: str) -> None:
    """Refuse a folder with a link that leads out of it or a FIFO, before anything writes there.

    Lightning, TensorBoard, Hydra and `logging` open files by name, follow links and wait for the
    reader of a FIFO.

    Args:
        folder: an existing folder, which may itself be named through links.
        key: the override that names the folder, for the message.

    Raises:
        ConfigError: the first such link, FIFO, device or socket.
    """
    top = Path(os.path.realpath(folder))
    for parent, folders, files in os.walk(top):  # does not enter linked folders
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(top):
                raise ConfigError(
                    f"{key}={folder} has a link in it, {path.relative_to(top)}, that leads out of "
                    "that folder: files behind it could be overwritten; remove the link or choose "
                    "another folder."
                )
        for name in files:
            path = Path(parent, name)
            if not (path.is_symlink() or path.is_file()) and os.path.lexists(path):
                raise ConfigError(
                    f"{key}={folder} has {path.relative_to(top)} in it, which is neither a file "
                    "nor a folder: remove it or choose another folder."
                )


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
    except Exception:
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


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """The file, whole or absent."""
    replace_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping that the file holds; None where there is none, or half of one."""
    try:
        found = json.loads(read_plain(path, _JSON_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
