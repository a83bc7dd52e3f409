"""Reads the description of the run in a checkpoint, without the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from xftrain.checkpoint.file import checked_content
from xftrain.checkpoint.file_format import ContentKey, content_key, described_content
from xftrain.checkpoint.plain_values import is_time
from xftrain.checkpoint.saved_config import check_description
from xftrain.utils.files import open_plain

_MAX_CANDIDATES = 16  # files in a folder; reading a file of another program may take seconds
_OWN_NAMES = ("last.ckpt", "previous.ckpt", "best.ckpt")
_MAX_RUN_ID = 100  # characters

log = logging.getLogger(__name__)


class Summary(NamedTuple):
    """The facts by which `ckpt=auto` chooses a checkpoint, small enough to be cached."""

    run_id: str | None = None
    saved_at: int = 0  # nanoseconds; 0 if missing or unreadable
    recency: tuple[int, int] | None = (
        None  # recorded time and step; None if it is no valid checkpoint
    )


def header(path: Path) -> Mapping[str, Any] | None:
    """The checkpoint's own entry, `xftrain`, and its `callbacks`; None if it cannot be read."""
    try:
        with open_plain(path) as file:
            return _header(described_content(file))
    except Exception:  # zipfile can raise anything
        return None


def summary(path: Path) -> Summary:
    """The summary of a checkpoint, which is empty if the file cannot be read."""
    try:
        with open_plain(path) as file:
            return _summary(content_key(file))
    except OSError:
        return Summary()


def run_id(path: Path) -> str | None:
    """The id of the run of a checkpoint; None if it has no id."""
    return summary(path).run_id


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints to look at in a folder: those that a run writes, then the newest files.

    An untrusted folder may hold any number of files, each slow to read.
    """
    found = sorted(folder.glob("*.ckpt"), key=_precedence)
    if len(found) > _MAX_CANDIDATES:
        log.warning(
            "%s holds %d checkpoints, of which %d are looked at, selected by name and modification "
            "time: give the path of another one as ckpt=<path>.",
            *(folder, len(found), _MAX_CANDIDATES),
        )
    return sorted(found[:_MAX_CANDIDATES])


def later_checkpoints(folder: Path, resumed: Path) -> list[Path]:
    """The checkpoints in a folder that were saved after another one, and their exported weights.

    Args:
        folder: the folder `checkpoints` of a run.
        resumed: the other checkpoint, in this folder or elsewhere.
    """
    saved_at = summary(resumed).saved_at
    later = [path for path in checkpoints_in(folder) if summary(path).saved_at > saved_at]
    weights = folder / "weights.safetensors"
    return [*later, weights] if later and weights.is_file() else later


def _header(content: Any) -> Mapping[str, Any]:
    check_description(content["xftrain"])
    return {"callbacks": content["callbacks"], **content["xftrain"]}


@lru_cache(maxsize=1024)
def _summary(key: ContentKey) -> Summary:
    try:
        content = described_content(key.file)
        header = _header(content)
    except Exception:  # zipfile can raise anything
        return Summary()
    try:
        recency = checked_content(content)["xftrain"].get("saved_at", 0), content["global_step"]
    except ValueError:
        recency = None
    callbacks, saved_at = header["callbacks"], header.get("saved_at", 0)
    state = callbacks.get("RunStart") if isinstance(callbacks, Mapping) else None
    run = state.get("run") if isinstance(state, Mapping) else None
    return Summary(
        run[:_MAX_RUN_ID] if isinstance(run, str) else None,
        saved_at if is_time(saved_at) else 0,
        recency,
    )


def _precedence(path: Path) -> tuple[int, float, str]:
    if path.name in _OWN_NAMES:
        return _OWN_NAMES.index(path.name), 0.0, ""
    try:
        changed_at = path.lstat().st_mtime
    except OSError:
        changed_at = 0.0
    return len(_OWN_NAMES), -changed_at, path.name
