"""Finds the overrides that differ between neighboring runs, for TensorBoard's HParams tab."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from xftrain.utils.files import read_json

_MAX_RUNS = 100  # the latest by name, which is a timestamp by default
# Limits for the untrusted overrides file of a neighbor; no typed command is longer.
_MAX_BYTES, _MAX_OVERRIDES, _LONGEST = 1 << 16, 200, 200
_USUAL = frozenset({"model.attn", "model.bias", "optim.lr", "seq", "batch_tokens"})


def differing_keys(run_dir: Path, overrides: Mapping[str, str], *, is_job: bool) -> frozenset[str]:
    """The hyperparameters to show first.

    TensorBoard takes the order of the columns from an arbitrary run, and has room for five.

    Args:
        run_dir: the run folder; its neighbors are the runs in the same parent folder.
        overrides: this run's overrides by dotted key, without those that all jobs of its multirun
            share.
        is_job: whether the run is a job of a multirun; then only its own keys are used.

    Returns:
        The overrides that differ; all of this run's if it has no neighbor; commonly overridden
        keys if there are no overrides.
    """
    others = [] if is_job else _neighbors(run_dir)
    keys = set(overrides).union(*others)
    differing = {key for key in keys if any(o.get(key) != overrides.get(key) for o in others)}
    return frozenset(differing or overrides) or _USUAL


def dotted(override: str) -> tuple[str, str]:
    """Splits an override into its dotted key and value: `model/attn=naive` sets `model.attn`."""
    key, _, value = override.lstrip("+~").partition("=")
    return key.replace("/", "."), value


def _neighbors(run_dir: Path) -> list[dict[str, str]]:
    """The overrides of the latest runs in the same folder, read from untrusted files."""
    try:
        folders = sorted(p for p in run_dir.absolute().parent.iterdir() if p.name != run_dir.name)
    except OSError:
        return []
    found = []
    for folder in folders[-_MAX_RUNS:]:
        listed = (read_json(folder / "result.json", _MAX_BYTES) or {}).get("overrides")
        if isinstance(listed, list):
            typed = [text for text in listed if isinstance(text, str) and len(text) <= _LONGEST]
            found.append(dict(map(dotted, typed[:_MAX_OVERRIDES])))
    return found
