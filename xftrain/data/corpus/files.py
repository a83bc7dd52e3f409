"""A file or a folder of text: its files, those that are held out, and their bytes in pieces.

Hidden files, hidden folders and `__pycache__` are skipped. No file is read twice, as a second name
of a file could put held-out text into the training files; `content` skips copies. Links within the
folder are followed, but links that lead out of it only if configured, as in a folder from someone
else they could lead to private files.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xftrain.data.corpus.run_outputs import is_output_folder, outputs_of_this_process
from xftrain.data.corpus.skipped import Skipped
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import Split
from xftrain.utils.files import open_plain, real_path
from xftrain.utils.printable import one_line

log = logging.getLogger(__name__)

PIECE_BYTES = 64 << 10


@dataclass(frozen=True)
class SourceFile:
    """A non-empty, readable, regular file.

    Attributes:
        name: its path below the folder, with slashes.
        path: its full path, without links below the folder.
        size: size in bytes.
    """

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class Document:
    """Bytes `[begin, end)` of a file."""

    path: Path
    begin: int
    end: int


def list_files(
    root: Path, *, leave_out: Path, follow_links: bool = False
) -> tuple[list[SourceFile], Skipped]:
    """Every file that may be text, sorted by name, and the skipped files by reason.

    Args:
        root: a file or a folder.
        leave_out: a folder to skip, as the token cache may lie inside the corpus.
        follow_links: whether links that lead out of the folder are followed.

    Raises:
        ConfigError: `root` is no readable file or folder, or an empty file.
    """
    status = _status(root)
    skipped = Skipped()
    top = Path(os.path.realpath(root))
    if not follow_links:
        _check_links(Path(os.path.abspath(root)), top)
    if stat.S_ISREG(status.st_mode):
        return [SourceFile(root.name, top, status.st_size)], skipped

    files: list[SourceFile] = []
    seen = {_identity(status)}
    left_out = {_identity(leave_out.stat())} if leave_out.exists() else set()
    own_outputs = outputs_of_this_process()
    folders = [("", top)]
    while folders:
        prefix, folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            skipped.add("unreadable", prefix or ".")
            continue
        if is_output_folder(folder, [entry.name for entry in entries]):
            skipped.add("run folder", prefix or ".")
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__pycache__":
                continue
            name, path = prefix + entry.name, folder / entry.name
            if entry.is_symlink():
                target = real_path(path)
                if target is None:  # a cycle, or more links than the system follows
                    skipped.add("unreadable", name)
                    continue
                path = target
                if not follow_links and not path.is_relative_to(top):
                    skipped.add("outside", name)
                    continue
            try:
                status = entry.stat()
            except OSError:  # a broken link
                skipped.add("unreadable", name)
                continue
            if _identity(status) in left_out:
                continue
            if _identity(status) in seen:
                skipped.add("repeated", name)
            elif stat.S_ISDIR(status.st_mode):
                folders.append((f"{name}/", path))
            elif not stat.S_ISREG(status.st_mode):
                skipped.add("special", name)
            elif _identity(status) in own_outputs:
                skipped.add("run output", name)
            elif not status.st_size:
                skipped.add("empty", name)
            elif not os.access(path, os.R_OK):
                skipped.add("unreadable", name)
            else:
                files.append(SourceFile(name, path, status.st_size))
            seen.add(_identity(status))
    return sorted(files, key=lambda file: file.name), skipped


def split_documents(
    files: Sequence[SourceFile], val_fraction: float
) -> dict[Split, list[Document]]:
    """Splits files by a hash of their names, or a single file into its beginning and its end.

    A file is held out if its hash is below the fraction. This does not depend on other files, so a
    file stays in its split if others are added or removed. If no hash is below the fraction, the
    file with the lowest hash is held out; if all are, the file with the highest hash is trained on.
    Only that file may change its split later.
    """
    if len(files) == 1:
        (file,) = files
        cut = _character_boundary(file.path, file.size - round(file.size * val_fraction))
        return {
            "train": [Document(file.path, 0, cut)],
            "val": [Document(file.path, cut, file.size)],
        }
    by_share = sorted(files, key=lambda file: _name_fraction(file.name))
    num_below = sum(_name_fraction(file.name) < val_fraction for file in files)
    if num_below in (0, len(files)):
        log.info(
            "data.val_fraction: %s of the files has a hash below %g, so %s is %s nonetheless; it "
            "changes sides if a file that belongs there is added",
            "none" if num_below == 0 else "each",
            val_fraction,
            one_line(by_share[0 if num_below == 0 else -1].name),
            "held out" if num_below == 0 else "trained on",
        )
    held_out = set(by_share[: min(max(num_below, 1), len(files) - 1)])
    documents: dict[Split, list[Document]] = {"train": [], "val": []}
    for file in files:
        split: Split = "val" if file in held_out else "train"
        documents[split].append(Document(file.path, 0, file.size))
    return documents


def read_pieces(document: Document) -> Iterator[bytes]:
    """The bytes of a document in bounded pieces, cut after a newline or else between characters.

    Raises:
        RunError: the file cannot be read, or has become shorter.
    """
    rest = b""
    missing = document.end - document.begin
    try:
        with open_listed(document.path) as file:
            file.seek(document.begin)
            while missing:
                block = file.read(min(missing, PIECE_BYTES))
                if not block:
                    raise changed_error(document.path)
                missing -= len(block)
                block = rest + block
                cut = _piece_end(block) if missing else len(block)
                yield block[:cut]
                rest = block[cut:]
    except OSError as error:
        raise unreadable_error(document.path, error) from error


@contextmanager
def open_listed(path: Path) -> Iterator[IO[bytes]]:
    """Opens a listed file, after checking that its path has not changed.

    Raises:
        RunError: a parent folder has become a link, which could lead anywhere.
    """
    with open_plain(path) as file:
        with suppress(FileNotFoundError):  # the system has no /proc
            if os.readlink(f"/proc/self/fd/{file.fileno()}") != str(path):
                raise changed_error(path)
        yield file


def changed_error(path: Path) -> RunError:
    """The error for a file that changed while it was read."""
    return RunError(
        f"data.path: files must not change while they are read, but under {str(path)!r} some did; "
        "run again when they no longer change."
    )


def _status(root: Path) -> os.stat_result:
    try:
        status = root.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(
            f"data.path must be an existing file or folder of text, got {str(root)!r} "
            f"({getattr(error, 'strerror', None) or error}); check the spelling."
        ) from error
    is_file = stat.S_ISREG(status.st_mode)
    problem = None
    if not (is_file or stat.S_ISDIR(status.st_mode)):
        problem = "which is neither a file nor a folder"
    elif not os.access(root, os.R_OK):
        problem = "which this user may not read"
    elif is_file and not status.st_size:
        problem = "which is empty"
    if problem:
        raise ConfigError(
            f"data.path must be a readable file or folder of text, got {str(root)!r}, {problem}; "
            "give another path."
        )
    return status


def _check_links(named: Path, top: Path) -> None:
    """Refuses a path that leads out of the working folder by a link, and names any other link.

    The working folder may be untrusted, and its links may lead to private files.

    Args:
        named: the absolute path as the user names it, with links.
        top: the same path with links resolved.

    Raises:
        ConfigError: it is below the working folder, and the resolved path is not.
    """
    here = Path.cwd()
    if named.is_relative_to(here) and not top.is_relative_to(os.path.realpath(here)):
        raise ConfigError(
            f"data.path leads out of the working folder by a link, to {one_line(str(top))}: give "
            "that path itself, or set data.follow_links=true."
        )
    if named != top:
        how = "is a link" if named.is_symlink() else "leads through a link"
        log.warning("data.path=%s %s: the files of %s are read", named, how, one_line(str(top)))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _name_fraction(name: str) -> float:
    """A number in [0, 1) that depends only on the name."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _character_boundary(path: Path, position: int) -> int:
    try:
        with open_listed(path) as file:
            file.seek(position)
            following = file.read(4)
    except OSError as error:
        raise unreadable_error(path, error) from error
    # Bytes 10xxxxxx continue a character; at most three of them follow its first byte.
    while following and following[0] & 0xC0 == 0x80:
        following, position = following[1:], position + 1
    return position


def _piece_end(block: bytes) -> int:
    newline = block.rfind(b"\n") + 1
    if newline:
        return newline
    last = len(block) - 1
    while last and block[last] & 0xC0 == 0x80:
        last -= 1
    return last or len(block)


def unreadable_error(path: Path, error: OSError) -> RunError:
    """The error for a listed file that cannot be read."""
    return RunError(
        f"data.path: every listed file must stay readable, but {str(path)!r} is not "
        f"({error.strerror}); restore it or remove it, then run again."
    )
