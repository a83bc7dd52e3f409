"""Finds the data files of a folder that `datasets.Dataset.save_to_disk` wrote.

`state.json` names the Arrow files of the dataset. Other files of the folder, such as the cached
results of `map`, are no part of it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from xftrain.data.corpus.skipped import Skipped
from xftrain.utils.files import read_json

_STATE, _INFO = "state.json", "dataset_info.json"
_SPLITS = "dataset_dict.json"  # of a folder of datasets, one in each subfolder
_MAX_BYTES = 16 << 20


def data_files_of(
    folder: Path, names: Collection[str], prefix: str, skipped: Skipped
) -> set[str] | None:
    """The names of the data files in a dataset's folder; None if it is an ordinary folder.

    Args:
        folder: path of the folder.
        names: names of all its entries.
        prefix: the folder's name within the corpus, with a slash, for what is skipped.
        skipped: counts files that are missing, and names that lead out of the folder.
    """
    if _SPLITS in names and _STATE not in names:
        return {name for name in names if name != _SPLITS}
    if _STATE not in names or _INFO not in names:
        return None
    state = read_json(folder / _STATE, _MAX_BYTES)
    files = state.get("_data_files") if state is not None else None
    if state is None or not isinstance(files, list):
        return None
    if state.get("_indices_data_files"):  # an old form; its data files have other rows as well
        skipped.add("indexed dataset", prefix or ".")
        return set()
    found = set()
    for file in files:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str) or "/" in name or name.startswith(".") or "\0" in name:
            skipped.add("outside dataset", f"{prefix}{_STATE}: {name}"[:200])
        elif name not in names:
            skipped.add("unreadable", prefix + name)
        else:
            found.add(name)
    return found
