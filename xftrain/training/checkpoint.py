"""Checkpoint files: whole or absent, and read without executing anything."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xftrain.errors import ConfigError, RunError, first_line
from xftrain.files import replacing, sync

_KEYS: dict[str, type] = {
    "xftrain": Mapping,
    "state_dict": Mapping,
    "global_step": int,
    "pytorch-lightning_version": str,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": Mapping,
    "callbacks": Mapping,
}

_HOW_TO_GO_ON = ("ckpt", "ckpt_allow")
# Keys, and groups of keys, without which a run that goes on would be another one; and those of
# them that change how it is computed or watched, not what.
_DECISIVE = (
    "seed",
    "seq",
    "batch_tokens",
    "data",
    "model",
    "trainer.accumulate_grad_batches",
    "trainer.devices",
    "trainer.overfit_batches",
)
_HARMLESS = (
    "data.cache_dir",
    "data.num_val_batches",
    "data.stop_at_accuracy",
    "model.activation_budget",
    "model.activation_checkpointing",
    "model.attn",
    "model.bias.impl",
    "model.ffn.impl",
)

log = logging.getLogger(__name__)


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the final place, flushes to the disk, then renames.

    Lightning's own goes through the temporary folder, which leaves half a file under the final
    name when that is another file system and the process dies.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """A complete file at `path`, or the one that was there before.

        Args:
            checkpoint: what to save.
            path: its place.
            storage_options: `{"previous": name}` keeps the file that was there under that name.

        Raises:
            RunError: the disk is full, or the folder cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                with partial.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if storage_options and path.exists():
                    _link(path, path.with_name(storage_options["previous"]))
            sync(path.parent)  # a rename is to outlast a power cut
        except (OSError, RuntimeError) as error:
            # torch reports a full disk as a RuntimeError of its zip writer
            if not isinstance(error, OSError) and "PytorchStreamWriter" not in str(error):
                raise
            raise RunError(
                f"the checkpoint {path} could not be written ({first_line(error)}): free space on "
                "its disk or choose another hydra.run.dir; the checkpoint before it is untouched."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint at `path`; tensors and plain values only, nothing is executed."""
        return read_checkpoint(path, map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes the file."""
        Path(path).unlink(missing_ok=True)


def _link(path: Path, other: Path) -> None:
    """The file under another name as well; without a moment at which it has none."""
    try:
        with replacing(other) as partial:
            partial.unlink(missing_ok=True)
            partial.hardlink_to(path)
    except OSError as error:  # a file system without links
        log.warning("%s is not kept: %s", other.name, error)


def sweep_partial_files(folder: Path) -> None:
    """Removes what writers left that were killed; nobody else writes in the folder of a run."""
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def export_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """The weights alone as safetensors, whole or absent; tied ones once, under their first name.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    first: dict[int, str] = {}
    for name, tensor in weights.items():
        first.setdefault(tensor.data_ptr(), name)
    once = {name: weights[name].detach().contiguous() for name in first.values()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            save_file(once, partial, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the weights {path} could not be written ({first_line(error)}): free space on its "
            "disk; the checkpoints are untouched."
        ) from error


def checkpoint_to_load(ckpt: str | None, run_dir: Path) -> Path | None:
    """The file to go on from: the path given, or for `auto` the newest valid one of the run.

    Raises:
        ConfigError: the file is damaged; for `auto`, every file of the run is.
    """
    if ckpt is None:
        return None
    if ckpt != "auto":
        read_checkpoint(ckpt)
        return Path(ckpt)
    # by the times that they hold: a copy of the folder has others
    files = sorted(run_dir.glob("checkpoints/*.ckpt"), key=_age)
    if not files:
        log.info("ckpt=auto: no checkpoint in %s yet, starting at step 0", run_dir)
        return None
    for path in reversed(files):
        try:
            step = read_checkpoint(path)["global_step"]
        except ConfigError as error:
            log.warning("ckpt=auto: skipped: %s", error)
        else:
            log.info("ckpt=auto: going on from %s, step %d", path, step)
            return path
    raise ConfigError(
        f"ckpt=auto found {len(files)} checkpoint(s) in {run_dir / 'checkpoints'} and none can be "
        "read: give the path of a good one, or another hydra.run.dir to start afresh."
    )


def _age(path: Path) -> tuple[float, float]:
    """When a checkpoint was saved, as it says itself, without a look at its weights.

    Infinite where it cannot be read: such a file comes first, to be said to be skipped.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return float(held["xftrain"].get("saved_at", 0)), path.stat().st_mtime
    except Exception:  # unpickling can raise anything
        return math.inf, 0.0


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """A checkpoint file as a dictionary.

    Raises:
        ConfigError: there is no such file, or it is damaged or holds more than plain values.
    """
    if not Path(path).is_file():
        raise ConfigError(f"ckpt={path} is not a file: give the path of a .ckpt file of a run.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks no sums
            if (bad := archive.testzip()) is not None:
                raise ValueError(f"wrong checksum of {bad}")
        loaded = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # unpickling can raise anything
        raise ConfigError(
            f"ckpt={path} cannot be read ({first_line(error)}): it is damaged or no checkpoint of "
            "xftrain; give another one."
        ) from error
    if not isinstance(loaded, dict) or not _is_ours(loaded):
        raise ConfigError(f"ckpt={path} is no checkpoint of xftrain: give a .ckpt file of a run.")
    return loaded


def _is_ours(loaded: Mapping[str, Any]) -> bool:
    right = all(isinstance(loaded.get(key), kind) for key, kind in _KEYS.items())
    return (
        right
        and isinstance(loaded["xftrain"].get("config"), Mapping)
        and all(isinstance(weight, Tensor) for weight in loaded["state_dict"].values())
    )


def refuse_other_model(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Compares names and shapes of two state dicts.

    Raises:
        ConfigError: they are not of the same model.
    """
    shapes = [
        {name: list(value.shape) for name, value in weights.items()} for weights in (saved, ours)
    ]
    differ = [n for n in {**saved, **ours} if shapes[0].get(n) != shapes[1].get(n)]
    if differ:
        there, here = (named.get(differ[0], "absent") for named in shapes)
        raise ConfigError(
            f"ckpt holds another model: {len(differ)} of its tensors differ from this one's, first "
            f"{differ[0]}, {there} there and {here} here; set model as in its run's config.yaml."
        )


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, str]:
    """Keys whose values differ, each as `optim.lr 0.003 -> 1e-05`, but those of going on."""
    before, after = (flat(config) for config in (saved, current))
    return {
        key: f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _HOW_TO_GO_ON
    }


def refuse_other_run(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compares two configurations in what decides which batches are seen and what is learned.

    Args:
        saved: of the checkpoint.
        current: of the run that goes on; its `ckpt_allow` names keys, or groups of them, that may
            differ.

    Raises:
        ConfigError: the keys that differ, and how to allow them.
    """
    allowed, known = current["ckpt_allow"], flat(current)
    for name in allowed:
        if not any(_is_in(key, (name,)) for key in known):
            raise ConfigError(f"ckpt_allow names {name!r}, which is no key of the configuration.")
    there = flat(saved)
    differing = [
        (key, text)
        for key, text in differences(saved, current).items()
        if _decides(key, there, known) and not _is_in(key, allowed)
    ]
    if differing:
        keys = ",".join(key for key, _ in differing)
        raise ConfigError(
            f"ckpt is of a run with another configuration: {', '.join(t for _, t in differing)}; "
            f"set them as there, or allow them to change with ckpt_allow=[{keys}]."
        )


def _decides(key: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether a run with another value, or without the key, would be another run."""
    if key.endswith("_target_"):  # a class of somebody's own
        return True
    parents = [key[:at] for at, letter in enumerate(key) if letter == "."]
    is_own = any(f"{parent}._target_" in {**there, **here} for parent in parents)
    if not is_own and (key not in there or key not in here):
        return False  # new since, which says nothing of the former run
    return _is_in(key, _DECISIVE) and not _is_in(key, _HARMLESS)


def with_digests(config: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with a digest behind each variable's name, so that values can be compared.

    Args:
        config: as it is written down, with names of variables in place of their values.
        environment: digests by these names.
    """

    def told(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: told(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [told(child) for child in value]
        if isinstance(value, str):
            for name, digest in environment.items():
                value = value.replace(f"${{oc.env:{name}}}", f"${{oc.env:{name}}} ({digest})")
        return value

    return {key: told(value) for key, value in config.items()}


def _is_in(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of these, or in a group that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a configuration by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:  # a tuple is saved as it is and typed as a list
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
