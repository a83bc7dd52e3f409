"""Seals, which prove that this user's xftrain on this machine wrote a record.

The owner of a file proves nothing, since whatever a user unpacks or clones belongs to that user.
So a secret key is stored in the user's state folder, and a record carries an HMAC. The HMAC covers
the folder, as otherwise a copied record would also be valid beside forged results.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xftrain.utils.files import open_plain

_FIELD = "seal"
_KEY_BYTES = 32


def sealed(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Adds a seal to a record, if this user has a folder for the key.

    Args:
        record: plain values.
        folder: the existing folder of the record.
    """
    key, place = _key(may_make=True), _identity(folder)
    if key is None or place is None:
        return {**record}
    return {**record, _FIELD: _seal(key, record, place)}


def has_valid_seal(record: Mapping[str, Any], folder: Path) -> bool:
    """Whether this user sealed the record on this machine, and it is unchanged.

    Args:
        record: the record that was read.
        folder: its folder; a seal is not valid in a folder that was moved or copied.
    """
    key, place, seal = _key(may_make=False), _identity(folder), record.get(_FIELD)
    if key is None or place is None or not isinstance(seal, str):
        return False
    return hmac.compare_digest(_seal(key, record, place).encode(), seal.encode("utf-8", "replace"))


def _seal(key: bytes, record: Mapping[str, Any], place: tuple[str, int]) -> str:
    content = {name: value for name, value in record.items() if name != _FIELD}
    text = json.dumps([content, place], sort_keys=True)  # ASCII
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _identity(folder: Path) -> tuple[str, int] | None:
    """The folder's real path and inode, which differ for a copy; None if it does not exist.

    The device number is excluded, since it may change when the machine reboots.
    """
    with suppress(OSError, ValueError):
        return os.path.realpath(folder), os.stat(folder).st_ino
    return None


def _key(*, may_make: bool) -> bytes | None:
    """The user's key; None if there is none, or if other users could have read or written it."""
    path = _key_path()
    if path is None:
        return None
    with suppress(OSError):
        if may_make and not path.exists():
            _make_key(path)
        with open_plain(path) as file:
            status = os.fstat(file.fileno())
            is_private = status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
            key = file.read(_KEY_BYTES + 1)
        return key if is_private and len(key) == _KEY_BYTES else None
    return None


def _key_path() -> Path | None:
    """`$XDG_STATE_HOME/xftrain/key`, or a path below the home folder if that is not absolute."""
    named, home = os.environ.get("XDG_STATE_HOME", ""), os.environ.get("HOME", "")
    if os.path.isabs(named):
        return Path(named, "xftrain", "key")
    return Path(home, ".local", "state", "xftrain", "key") if os.path.isabs(home) else None


def _make_key(path: Path) -> None:
    """Writes a new key to a temporary file and links it into place; the first process wins."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
