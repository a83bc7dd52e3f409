"""The folders that a command reserves before Hydra writes to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from xftrain.folders.lock import acquire, release
from xftrain.utils.files import read_plain

HYDRA = ".hydra"
_HYDRA_FILES, _HYDRA_BYTES = ("config.yaml", "hydra.yaml", "overrides.yaml"), 1 << 20


class ReservedFolders:
    """The folders that one command has locked, and the files of Hydra that it found in them.

    The command line makes one, fills it in before Hydra opens any file, and passes it to the
    command. A run that is started from Python has an empty one. Folders are known by their real
    paths.
    """

    def __init__(self) -> None:
        self._locks: dict[str, IO[bytes]] = {}
        self._in_use: set[str] = set()  # reserved folders that a run is writing to
        self._hydra_files: dict[str, dict[str, bytes]] = {}

    def reserve(self, folder: Path, key: str, *, wait_s: float = 0.0) -> None:
        """Locks a folder for the rest of the command, until `release`.

        Args:
            folder: the folder, which is made if it does not exist.
            key: the override that names the folder, for the message.
            wait_s: how long to wait for another command to release the lock.

        Raises:
            ConfigError: another command holds the lock.
            OSError: the folder or the file in it cannot be made.
        """
        name = os.path.realpath(folder)
        if name not in self._locks:
            self._locks[name] = acquire(folder, key, wait_s)

    def release(self) -> None:
        """Releases the locks that `reserve` took."""
        while self._locks:
            _, file = self._locks.popitem()
            release(file)

    @contextmanager
    def locked(self, folder: Path, key: str) -> Iterator[None]:
        """Holds the lock of a folder, whether or not the command has reserved it.

        Raises:
            ConfigError: another command, or another run in this process, holds it.
            OSError: the folder or the file in it cannot be made.
        """
        name = os.path.realpath(folder)
        file = None
        if name in self._in_use or name not in self._locks:
            file = acquire(folder, key)
        self._in_use.add(name)
        try:
            yield
        finally:
            self._in_use.discard(name)
            if file is not None:
                release(file)

    def remember_hydra(self, folder: Path) -> None:
        """Keeps the content of an earlier command's Hydra files, which Hydra replaces."""
        found = {}
        for name in _HYDRA_FILES:
            with suppress(OSError):
                found[name] = read_plain(folder / HYDRA / name, _HYDRA_BYTES)
        self._hydra_files[os.path.realpath(folder)] = found

    def pop_hydra_files(self, folder: Path) -> dict[str, bytes]:
        """Removes and returns what `remember_hydra` kept of a folder, by file name."""
        return self._hydra_files.pop(os.path.realpath(folder), {})

    def folders_with_hydra_files(self) -> list[Path]:
        """The folders whose Hydra files are kept."""
        return [Path(name) for name in self._hydra_files]
