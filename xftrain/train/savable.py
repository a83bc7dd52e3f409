"""Checks before training that checkpoints can hold all state, rather than at the first save.

A checkpoint holds tensors and plain values. The `state_dict()` of a user's class may return other
values, such as NumPy scalars.
"""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from xftrain.checkpoint.plain_pickle import read_plain_pickle
from xftrain.checkpoint.plain_values import NotPlain, is_count
from xftrain.errors import ConfigError, first_line
from xftrain.utils.printable import one_line

_MAX_PLAIN_DEPTH = 6  # of what is known to be savable at a glance; a container may hold itself


def refuse_unsavable(trainer: Trainer, *, have_started: bool) -> None:
    """Checks that a checkpoint can hold the state of callbacks, optimizers and the model.

    Args:
        trainer: the trainer, with its optimizers; nothing is checked if it saves no checkpoints.
        have_started: whether every callback's `on_train_start` was called; before that, a callback
            whose `state_dict()` fails is left to a later check.

    Raises:
        ConfigError: a state cannot be saved; the message names its class and the value.
    """
    if not any(isinstance(c, Checkpoint) for c in trainer.callbacks):  # type: ignore[attr-defined]
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        _check(callback, _callback_state(callback, have_started=have_started))
    schedules: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs]
    for part in [*trainer.optimizers, *schedules]:
        _check(part, part.state_dict())
    for name, value in trainer.lightning_module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"the state_dict of the model has a {type(value).__name__} at {one_line(name)}, "
                "and a checkpoint holds only tensors there: remove get_extra_state()."
            )


def _callback_state(callback: Callback, *, have_started: bool) -> Any:
    try:
        return callback.state_dict()
    except Exception:  # of a user's class
        if have_started:
            raise
        return {}


def _check(part: object, state: object) -> None:
    if not _is_plain(state) and (reason := why_unsavable(state)) is not None:
        name = f"{type(part).__module__}.{type(part).__qualname__}"
        raise ConfigError(
            f"{name}.state_dict() returns what no checkpoint can hold ({reason}): let it return "
            "tensors and plain values, such as float(x) for a NumPy number."
        )


def _is_plain(state: Any, depth: int = 0) -> bool:
    """Whether a state has nothing but what every checkpoint can hold, without writing it."""
    if state is None or type(state) in (bool, int, float, str):
        return True
    if type(state) is Tensor:
        return state.layout is torch.strided and not state.is_quantized
    if depth == _MAX_PLAIN_DEPTH:
        return False
    if type(state) is dict:
        return all(
            (type(key) is str or is_count(key)) and _is_plain(value, depth + 1)
            for key, value in state.items()
        )
    return type(state) in (list, tuple) and all(_is_plain(one, depth + 1) for one in state)


def why_unsavable(state: object) -> str | None:
    """The reason why a checkpoint with this state could not be read again, or None."""
    written = io.BytesIO()
    try:
        torch.save(_without_content(state, {}), written)
        with zipfile.ZipFile(written) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            pickle = archive.read(entries["data.pkl"])
        sizes = {
            name.removeprefix("data/"): entry.file_size
            for name, entry in entries.items()
            if name.startswith("data/")
        }
        read_plain_pickle(pickle, sizes)
    except OSError:  # unrelated to the state
        return None
    except NotPlain as error:
        return str(error)
    except Exception as error:  # pickling a user's object can raise anything
        return one_line(first_line(error))
    return None


def _without_content(value: Any, copies: dict[int, Any]) -> Any:
    """Copies nested containers with an empty tensor in place of each dense one.

    Args:
        value: any value.
        copies: the copies of containers by address, so that a shared one is copied once.
    """
    if type(value) is Tensor and value.layout is torch.strided and not value.is_quantized:
        return torch.empty(0, dtype=value.dtype)
    if id(value) in copies:
        return copies[id(value)]
    if type(value) in (dict, OrderedDict):
        copy = copies[id(value)] = type(value)()
        for key, child in value.items():
            copy[key] = _without_content(child, copies)
        return copy
    if type(value) is list:
        listed: list[Any] = []
        copies[id(value)] = listed
        listed += [_without_content(child, copies) for child in value]
        return listed
    if type(value) is tuple:
        return tuple(_without_content(child, copies) for child in value)
    return value
