"""Configuration keys that were renamed since an earlier version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {
    "optim.schedule": "schedule",
    "optim.warmup_steps": "schedule.warmup_steps",
    "optim.min_lr_ratio": "schedule.min_lr_ratio",
}


def moved_key_error(key: str) -> str | None:
    """The error sentence for a renamed key; None for any other key."""
    if key not in MOVED:
        return None
    new = MOVED[key]
    value = "<option>" if new == "schedule" else "<value>"
    return f"{key} is {new} now: write {new}={value}."


def in_new_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a configuration that an earlier version saved to the keys of this version.

    Before `schedule` was a group, its fields were fields of each built-in optimizer.

    Args:
        config: the configuration of an untrusted checkpoint.
    """
    optim = config.get("optim")
    if "schedule" in config or not isinstance(optim, Mapping) or "name" not in optim:
        return dict(config)
    own = {f"optim.{key}" for key in optim} & MOVED.keys()
    schedule = {MOVED[key].rpartition(".")[2]: optim[key.partition(".")[2]] for key in own}
    if (name := schedule.pop("schedule", None)) is None:
        return dict(config)
    if name == "constant":  # for which it has no meaning
        schedule.pop("min_lr_ratio", None)
    kept = {key: value for key, value in optim.items() if f"optim.{key}" not in own}
    schedule = {"name": name, **schedule}
    return {**config, "optim": {**kept, "param_groups": []}, "schedule": schedule}


def flat_in_new_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts values by dotted keys as `in_new_keys` does."""
    prefix = "optim."
    optim = {key[len(prefix) :]: value for key, value in values.items() if key.startswith(prefix)}
    others = {key: value for key, value in values.items() if not key.startswith(prefix)}
    if any(key.partition(".")[0] == "schedule" for key in values):
        return dict(values)
    renamed = in_new_keys({"optim": optim})
    groups = {group: renamed.get(group, {}) for group in ("optim", "schedule")}
    dotted = {f"{group}.{key}": v for group, node in groups.items() for key, v in node.items()}
    return others | dotted
