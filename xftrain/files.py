"""Files that are whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def replace_text(path: Path, text: str) -> None:
    """Writes beside the place and renames; an error leaves what was there."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, content: bytes) -> None:
    """The same for what is no text."""
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, renamed at the end; an error leaves what was there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
