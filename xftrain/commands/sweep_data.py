"""Compares the data of a sweep's jobs by content, so that no sweep mixes results of different data.

Each job writes the digest of its data to the subfolder `.jobs` of the sweep's folder. It is refused
if another job with the same data options had another digest. When a sweep is resumed, these files
are written again from the results of the completed jobs only. All files are untrusted. Every
command imports this module, so it must not import torch.
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
from xftrain.utils.redaction import hidden

log = logging.getLogger(__name__)

JOBS_FOLDER = ".jobs"  # subfolder of a sweep's folder
_PREFIX = "data-"
_NAME_LENGTH = 16  # characters of a hash in a file name
_SHOWN = 12  # characters of a digest in a message
_MAX_CHARACTERS = 200  # longest name of a folder in a message


def multirun_dir(settings: Any) -> Path:
    """The folder of the sweep that a job belongs to.

    Args:
        settings: Hydra's own configuration of the job.
    """
    return Path(settings.runtime.cwd) / str(settings.sweep.dir)


def refuse_other_data(sweep: Path, run_dir: Path, digest: str | None) -> None:
    """Compares the data of a job with that of the other jobs, and records its digest for them.

    Args:
        sweep: the sweep's folder.
        run_dir: the job's folder.
        digest: the digest of its data; None if the data has none, so that nothing is compared.

    Raises:
        ConfigError: another job with the same options of data had other content.
    """
    if digest is None:
        return
    jobs_folder, options = sweep / JOBS_FOLDER, _options_of(run_dir)
    if other := _other_record(jobs_folder, options, digest):
        raise ConfigError(_different_data_message(sweep, options, other, digest))
    mine = _write_digest(jobs_folder, options, digest, run_dir)
    # again, since another job may have started at the same time
    if other := _other_record(jobs_folder, options, digest):
        with suppress(OSError):
            mine.unlink()
        raise ConfigError(_different_data_message(sweep, options, other, digest))


def make_jobs_folder(sweep: Path) -> Path:
    """Makes the subfolder of a sweep for records of its jobs, unless it exists.

    Raises:
        OSError: the folder cannot be made, or its name belongs to a link or a file.
    """
    jobs_folder = sweep / JOBS_FOLDER
    if jobs_folder.is_symlink():
        raise NotADirectoryError(f"{jobs_folder} is a link")
    jobs_folder.mkdir(parents=True, exist_ok=True)
    return jobs_folder


def restore_digests(sweep: Path) -> None:
    """Writes the digests of a sweep's completed jobs, and of no others, for the remaining jobs.

    Raises:
        ConfigError: the completed jobs themselves had different data.
        OSError: the digests cannot be written.
    """
    jobs_folder = make_jobs_folder(sweep)
    for path in jobs_folder.glob(f"{_PREFIX}*.json"):
        path.unlink()
    unknown = []
    records: dict[str, dict[str, str]] = {}  # of the first job with the same options
    for run_dir, result in _completed(sweep):
        if "data_digest" not in result:
            unknown.append(run_dir)
        elif isinstance(digest := result["data_digest"], str):
            options = _options_of(run_dir)
            first = records.setdefault(_prefix(options), {"digest": digest, "job": run_dir.name})
            if first["digest"] != digest:
                raise ConfigError(_different_data_message(sweep, options, first, digest))
    for prefix, first in records.items():
        write_json(first, _path(jobs_folder, prefix, first["digest"]))
    if unknown:
        log.warning(
            "%d completed jobs of %s have no record of the content of their data (first %s): "
            "it is unknown whether it has changed since",
            *(len(unknown), sweep, one_line(str(unknown[0]))),
        )


def _completed(sweep: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the folder and the result of each completed job, without former runs."""
    for name, folders, files in os.walk(sweep):
        folders[:] = sorted(
            f for f in folders if not f.startswith(("former-", ".")) and f != "checkpoints"
        )
        if JOB_FILE in files and "result.json" in files:
            result = read_json(Path(name, "result.json"))
            if result is not None and result.get("status") == "completed":
                yield Path(name), result


def _options_of(run_dir: Path) -> dict[str, Any]:
    config = (read_json(run_dir / JOB_FILE) or {}).get("config")
    return content_options(config) if isinstance(config, dict) else {}


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_NAME_LENGTH]


def _prefix(options: Mapping[str, Any]) -> str:
    """The beginning of the names of files about jobs with these options."""
    return f"{_PREFIX}{_short_hash(json.dumps(options, sort_keys=True))}-"


def _path(jobs_folder: Path, prefix: str, digest: str) -> Path:
    return jobs_folder / f"{prefix}{_short_hash(digest)}.json"


def _write_digest(
    jobs_folder: Path, options: Mapping[str, Any], digest: str, run_dir: Path
) -> Path:
    path = _path(jobs_folder, _prefix(options), digest)
    if not path.exists():
        jobs_folder.mkdir(exist_ok=True)
        write_json({"digest": digest, "job": run_dir.name}, path)
    return path


def _other_record(
    jobs_folder: Path, options: Mapping[str, Any], digest: str
) -> dict[str, Any] | None:
    """The record of another job with these options and other content; None if there is none."""
    mine = _path(jobs_folder, _prefix(options), digest)
    for path in sorted(jobs_folder.glob(f"{_prefix(options)}*.json")):
        if path != mine and (found := read_json(path)) is not None:
            return found
    return None


def _different_data_message(
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
    return shortened(one_line(hidden(str(value))), _MAX_CHARACTERS)  # not half a secret
