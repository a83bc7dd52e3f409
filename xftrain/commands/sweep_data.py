"""Compares the data of a sweep's jobs by content, so that no sweep mixes results of different data.

Each job leaves the digest of its data in the subfolder `.jobs` of the sweep's folder. It is refused
if another job with the same options of data had another digest. When a sweep is resumed, these
files are written anew from the results of the completed jobs, so that only those count. All files
may be from somebody else. Imports no torch: every command imports this.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from xftrain.config.content_options import content_options
from xftrain.errors import ConfigError
from xftrain.folders.run_folder import JOB_FILE
from xftrain.utils.files import read_json, write_json
from xftrain.utils.printable import one_line, shortened

log = logging.getLogger(__name__)

JOBS = ".jobs"  # subfolder of a sweep's folder
_PREFIX = "data-"
_NAME_LENGTH = 16  # of a hash in a file's name
_SHOWN = 12  # characters of a digest in a message
_MAX_CHARACTERS = 200  # longest name of a folder in a message


def multirun_dir(settings: Any) -> Path:
    """The folder of the sweep that a job belongs to.

    Args:
        settings: Hydra's own configuration of the job.
    """
    return Path(settings.runtime.cwd) / str(settings.sweep.dir)


def refuse_other_data(sweep: Path, run_dir: Path, digest: str | None) -> None:
    """Compares the data of a job with that of the other jobs, and leaves its digest for those.

    Args:
        sweep: the sweep's folder.
        run_dir: the job's folder.
        digest: the digest of its data; None if the data has none, so that nothing is compared.

    Raises:
        ConfigError: another job with the same options of data had other content.
    """
    if digest is None:
        return
    place, options = sweep / JOBS, _options_of(run_dir)
    if other := _other(place, options, digest):
        raise ConfigError(_sentence(sweep, options, other, digest))
    mine = _leave(place, options, digest, run_dir)
    if other := _other(place, options, digest):  # of a job that started at the same time
        with suppress(OSError):
            mine.unlink()
        raise ConfigError(_sentence(sweep, options, other, digest))


def made_jobs_folder(sweep: Path) -> Path:
    """The subfolder of a sweep for records of its jobs, made if it is missing.

    Raises:
        OSError: it cannot be made, or its name is taken by something else.
    """
    place = sweep / JOBS
    if place.is_symlink():
        raise NotADirectoryError(f"{place} is a link")
    place.mkdir(parents=True, exist_ok=True)
    return place


def recall_data(sweep: Path) -> None:
    """Leaves the digests of a sweep's completed jobs, and of no others, for the jobs to come.

    Raises:
        ConfigError: the completed jobs themselves had different data.
        OSError: the digests cannot be written.
    """
    place = made_jobs_folder(sweep)
    for path in place.glob(f"{_PREFIX}*.json"):
        path.unlink()
    unknown = []
    found: dict[str, dict[str, str]] = {}  # what the first job with these options had
    for run_dir, result in _completed(sweep):
        if "data_digest" not in result:
            unknown.append(run_dir)
        elif isinstance(digest := result["data_digest"], str):
            options = _options_of(run_dir)
            first = found.setdefault(_prefix(options), {"digest": digest, "job": run_dir.name})
            if first["digest"] != digest:
                raise ConfigError(_sentence(sweep, options, first, digest))
    for prefix, first in found.items():
        write_json(first, _path(place, prefix, first["digest"]))
    if unknown:
        log.warning(
            "%d completed jobs of %s have no record of the content of their data (first %s): "
            "whether it has changed since is not known",
            *(len(unknown), sweep, one_line(str(unknown[0]))),
        )


def _completed(sweep: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of completed jobs and their results, without those of former runs."""
    for name, folders, files in os.walk(sweep):
        folders[:] = sorted(
            one for one in folders if not one.startswith(("former-", ".")) and one != "checkpoints"
        )
        if JOB_FILE in files and "result.json" in files:
            result = read_json(Path(name, "result.json"))
            if result is not None and result.get("status") == "completed":
                yield Path(name), result


def _options_of(run_dir: Path) -> dict[str, Any]:
    config = (read_json(run_dir / JOB_FILE) or {}).get("config")
    return content_options(config) if isinstance(config, dict) else {}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_NAME_LENGTH]


def _prefix(options: Mapping[str, Any]) -> str:
    """The beginning of the names of files about jobs with these options."""
    return f"{_PREFIX}{_hash(json.dumps(options, sort_keys=True))}-"


def _path(place: Path, prefix: str, digest: str) -> Path:
    return place / f"{prefix}{_hash(digest)}.json"


def _leave(place: Path, options: Mapping[str, Any], digest: str, run_dir: Path) -> Path:
    path = _path(place, _prefix(options), digest)
    if not path.exists():
        place.mkdir(exist_ok=True)
        write_json({"digest": digest, "job": run_dir.name}, path)
    return path


def _other(place: Path, options: Mapping[str, Any], digest: str) -> dict[str, Any] | None:
    """What another job with these options and other content has left."""
    mine = _path(place, _prefix(options), digest)
    for path in sorted(place.glob(f"{_prefix(options)}*.json")):
        if path != mine and (found := read_json(path)) is not None:
            return found
    return None


def _sentence(
    sweep: Path, options: Mapping[str, Any], other: Mapping[str, Any], digest: str
) -> str:
    path = options.get("data.path")
    what = "the content of data" if path is None else f"the text of data.path={_cut(path)}"
    there = one_line(str(other.get("digest")))[:_SHOWN]
    return (
        f"{what} has changed since job {_cut(other.get('job'))} of this sweep (digest {there} -> "
        f"{one_line(digest)[:_SHOWN]}), so that results of different data would be compared: "
        f"restore it, choose another hydra.sweep.dir than {_cut(sweep)}, or delete result.json of "
        "the jobs that have completed and resume the sweep."
    )


def _cut(value: Any) -> str:
    return shortened(one_line(str(value)), _MAX_CHARACTERS)
