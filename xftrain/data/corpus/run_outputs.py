"""Finds the outputs of runs inside a corpus, whose logs must not be trained on.

Otherwise the jobs of a sweep would train on different text.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from xftrain.utils.files import read_json, read_plain

# A folder that holds all files of one of these sets belongs to a run, a sweep or a benchmark.
_MARKS = (
    {".hydra"},
    {".sweep.json"},
    {"multirun.yaml"},
    {"xftrain.log"},
    {"config.yaml", "metrics.csv"},
    {"environment.json", "rows.jsonl"},
    {"last.ckpt"},
    {"best.ckpt"},
    {"previous.ckpt"},
)
_RESULT_KEYS = {"status", "overrides", "run_dir"}
_ROOT_KEYS = (b"\nbatch_tokens:", b"\nmax_steps:", b"\ntrainer:", b"\ncallbacks:")
_MAX_BYTES = 1 << 20


def is_output_folder(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder belongs to a run, a sweep or a benchmark.

    Args:
        folder: path of the folder.
        names: names of all its entries.
    """
    present = set(names)
    if any(mark <= present for mark in _MARKS):
        return True
    if "result.json" in present:
        result = read_json(folder / "result.json", _MAX_BYTES)
        if result is not None and result.keys() >= _RESULT_KEYS:
            return True
    # a run that was started in Python has only this file when it reads its text
    return "config.yaml" in present and _is_configuration(folder / "config.yaml")


def outputs_of_this_process() -> set[tuple[int, int]]:
    """Device and inode of the files that stdout and stderr are redirected to, as by `> log.txt`."""
    found = set()
    for descriptor in (1, 2):
        try:
            status = os.fstat(descriptor)
        except OSError:  # closed
            continue
        if stat.S_ISREG(status.st_mode):
            found.add((status.st_dev, status.st_ino))
    return found


def _is_configuration(path: Path) -> bool:
    try:
        content = b"\n" + read_plain(path, _MAX_BYTES)
    except OSError:
        return False
    return all(key in content for key in _ROOT_KEYS)
