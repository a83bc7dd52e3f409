"""The data options that determine the content of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys of `data` that change how batches are cut from the content, not the content.
_SAME_CONTENT = (
    "batch_size",
    "cache_dir",
    "num_val_batches",
    "num_workers",
    "packing",
    "stop_at_accuracy",
)


def content_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The data options that determine its content, from a configuration by dotted keys."""
    return {
        key: value
        for key, value in config.items()
        if key.startswith("data.") and key.removeprefix("data.") not in _SAME_CONTENT
    }
