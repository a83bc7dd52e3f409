"""Lists the files of a corpus: files, folders, globs, or several of these.

Hidden files, hidden folders and `__pycache__` are skipped. No file is read twice, as a second name
of a file could put held-out text into the training files; `content` skips copies. Links within the
folder are followed, but links that lead out of it only if configured, as in a folder from someone
else they could lead to private files.
"""

from __future__ import annotations

import glob
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from xftrain.data.corpus.files import SourceFile
from xftrain.data.corpus.hugging_face import data_files_of
from xftrain.data.corpus.run_outputs import is_output_folder, outputs_of_this_process
from xftrain.data.corpus.skipped import Skipped
from xftrain.errors import ConfigError
from xftrain.utils.files import real_path
from xftrain.utils.printable import one_line

log = logging.getLogger(__name__)


class Listing:
    """Lists files, each once, whatever the paths that lead to it.

    Args:
        leave_out: a folder to skip, as the token cache may lie inside the corpus.
        follow_links: whether links that lead out of a folder are followed.

    Attributes:
        skipped: the skipped files by reason.
    """

    def __init__(self, *, leave_out: Path, follow_links: bool) -> None:
        self.skipped = Skipped()
        self._follow_links = follow_links
        self._seen: set[tuple[int, int]] = set()
        self._left_out = {_identity(leave_out.stat())} if leave_out.exists() else set()
        self._own_outputs = outputs_of_this_process()
        self._files: list[SourceFile] = []

    def files_of(self, roots: Iterable[Path], key: str = "data.path") -> list[SourceFile]:
        """The files of all paths that no earlier call has listed, sorted by name for each path.

        Args:
            roots: files, folders and globs.
            key: the option that names them, for messages.

        Raises:
            ConfigError: one is no readable file or folder, or an empty file.
        """
        found: list[SourceFile] = []
        for root in roots:
            self._files = []
            if glob.has_magic(str(root)) and not os.path.lexists(root):
                self._add_glob(root, key)
            else:
                self._add_root(root, key)
            found += sorted(self._files, key=lambda file: file.name)
        return found

    def _add_root(self, root: Path, key: str) -> None:
        status = _status(root, key)
        top = Path(os.path.realpath(root))
        if not self._follow_links:
            _check_links(Path(os.path.abspath(root)), top, key)
        if _identity(status) in self._seen:
            self.skipped.add("repeated", root.name)
            return
        self._seen.add(_identity(status))
        if stat.S_ISREG(status.st_mode):
            self._files.append(SourceFile(root.name, top, status.st_size))
        else:
            self._walk([("", top)], top)

    def _add_glob(self, pattern: Path, key: str) -> None:
        """Adds what a glob matches; names are relative to the folder before its first wildcard."""
        parts = list(pattern.parts)
        fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
        base = Path(*parts[:fixed])
        _status(base, key)
        top = Path(os.path.realpath(base))
        if not self._follow_links:
            _check_links(Path(os.path.abspath(base)), top, key)
        matches = sorted(glob.iglob(str(pattern), recursive=True))  # without hidden ones
        if not matches:
            raise ConfigError(
                f"{key} must match a file or folder of text, got {one_line(str(pattern))!r}, which "
                "matches none; check the spelling, or put the path into quotes if a character of "
                "it is meant by itself."
            )
        of_runs: dict[Path, bool] = {}
        walked: set[Path] = set()
        for match in matches:
            name = os.path.relpath(match, base)
            if name == ".":  # as ** matches
                self._walk([("", top)], top)
                return
            above = list(Path(name).parents)
            if "__pycache__" in Path(name).parts or not walked.isdisjoint(above):
                continue
            if any(_is_output(base / folder, of_runs) for folder in above[:-1]):
                self.skipped.add("run output", name)
            elif (below := self._add_entry(name, Path(match), top, is_link=True)) is not None:
                walked.add(Path(name))
                self._walk([below], top)

    def _walk(self, folders: list[tuple[str, Path]], top: Path) -> None:
        while folders:
            prefix, folder = folders.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                self.skipped.add("unreadable", prefix or ".")
                continue
            names = [entry.name for entry in entries]
            if is_output_folder(folder, names):
                self.skipped.add("run folder", prefix or ".")
                continue
            if (listed := data_files_of(folder, names, prefix, self.skipped)) is not None:
                entries = [entry for entry in entries if entry.name in listed]
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__pycache__":
                    continue
                name = prefix + entry.name
                below = self._add_entry(name, folder / entry.name, top, is_link=entry.is_symlink())
                folders += [] if below is None else [below]

    def _add_entry(
        self, name: str, path: Path, top: Path, *, is_link: bool
    ) -> tuple[str, Path] | None:
        """Adds a file, and returns a folder, whose entries the caller adds."""
        if is_link:
            target = real_path(path)
            if target is None:  # a cycle, or more links than the system follows
                self.skipped.add("unreadable", name)
                return None
            path = target
            if not self._follow_links and not path.is_relative_to(top):
                self.skipped.add("outside", name)
                return None
        try:
            status = path.stat()
        except OSError:  # a broken link
            self.skipped.add("unreadable", name)
            return None
        if _identity(status) in self._left_out:
            return None
        found = None
        if _identity(status) in self._seen:
            self.skipped.add("repeated", name)
        elif stat.S_ISDIR(status.st_mode):
            found = f"{name}/", path
        elif not stat.S_ISREG(status.st_mode):
            self.skipped.add("special", name)
        elif _identity(status) in self._own_outputs:
            self.skipped.add("run output", name)
        elif not status.st_size:
            self.skipped.add("empty", name)
        elif not os.access(path, os.R_OK):
            self.skipped.add("unreadable", name)
        else:
            self._files.append(SourceFile(name, path, status.st_size))
        self._seen.add(_identity(status))
        return found


def _is_output(folder: Path, known: dict[Path, bool]) -> bool:
    if folder not in known:
        try:
            known[folder] = is_output_folder(folder, os.listdir(folder))
        except OSError:
            known[folder] = False
    return known[folder]


def _status(root: Path, key: str) -> os.stat_result:
    try:
        status = root.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(
            f"{key} must be an existing file or folder of text, got {str(root)!r} "
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
            f"{key} must be a readable file or folder of text, got {str(root)!r}, {problem}; "
            "give another path."
        )
    return status


def _check_links(named: Path, top: Path, key: str) -> None:
    """Refuses a path that leads out of the working folder by a link, and names any other link.

    The working folder may be untrusted, and its links may lead to private files.

    Args:
        named: the absolute path as the user names it, with links.
        top: the same path with links resolved.
        key: the option that names it, for the message.

    Raises:
        ConfigError: it is below the working folder, and the resolved path is not.
    """
    here = Path.cwd()
    if named.is_relative_to(here) and not top.is_relative_to(os.path.realpath(here)):
        raise ConfigError(
            f"{key} leads out of the working folder by a link, to {one_line(str(top))}: give "
            "that path itself, or set data.follow_links=true."
        )
    if named != top:
        how = "is a link" if named.is_symlink() else "leads through a link"
        log.warning("%s=%s %s: the files of %s are read", key, named, how, one_line(str(top)))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
