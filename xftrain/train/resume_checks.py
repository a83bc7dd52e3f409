"""Checks that this run can resume a checkpoint, before anything is restored."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from xftrain.checkpoint.averaged_weights import AVERAGED
from xftrain.config.moved_keys import in_new_keys
from xftrain.errors import ConfigError
from xftrain.train.restored import check_loops
from xftrain.train.same_data import DataIdentity
from xftrain.train.same_run import (
    allows,
    differences,
    refuse_other_model,
    refuse_other_optimizer,
    refuse_other_run,
    with_digests,
)

_AVERAGE = "callbacks.average"  # the key that `ckpt_allow` names

log = logging.getLogger(__name__)


def check_resumable(
    checkpoint: Mapping[str, Any],
    trainer: Trainer,
    own: Mapping[str, Any],
    data: DataIdentity,
    weights: Mapping[str, Tensor],
) -> None:
    """Compares a checkpoint with the run that resumes it, and logs what differs.

    Args:
        checkpoint: content of the checkpoint, with its layout checked.
        trainer: the trainer of this run.
        own: the values that this run saves: its configuration, and digests of the environment
            variables that it has read.
        data: identity of the data of this run.
        weights: weights of this run, by name.

    Raises:
        ConfigError: the checkpoint holds the weights of another model, or is of a run with other
            data or another seed.
    """
    held = checkpoint["xftrain"]
    averages = any(isinstance(c, WeightAveraging) for c in trainer.callbacks)  # type: ignore[attr-defined]
    if "current_model_state" in checkpoint and not averages:
        raise ConfigError(
            "ckpt holds averaged weights beside the trained ones: resume it with the callback "
            "that averaged them, as the run's config.yaml names it."
        )
    _refuse_lost_average(checkpoint, trainer, own["config"])
    data.refuse_other_vocabulary(held)  # first, as the sizes of the model depend on it
    refuse_other_model(checkpoint["state_dict"], weights)
    saved, current = in_new_keys(held["config"]), own["config"]
    refuse_other_optimizer(saved, current)
    refuse_other_run(
        with_digests(saved, held.get("environment", {})),
        with_digests(current, own.get("environment", {})),
        moved=data.has_content_of(held),
    )
    data.refuse_other_content(held, current)
    _log_changed_code(held.get("own_code"), own.get("own_code", {}))
    check_loops(checkpoint["loops"]["fit_loop"], trainer.fit_loop.state_dict())
    if changed := differences(saved, current).values():
        log.info(
            "ckpt: this run's configuration differs from the checkpoint's: %s", ", ".join(changed)
        )
    if checkpoint["global_step"] >= trainer.max_steps:
        log.warning(
            "ckpt is at step %d and max_steps is %d: nothing is left to train",
            checkpoint["global_step"],
            trainer.max_steps,
        )


def _refuse_lost_average(
    checkpoint: Mapping[str, Any], trainer: Trainer, config: Mapping[str, Any]
) -> None:
    """Refuses to resume without the callback that averages the weights, unless it is allowed."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    keeps_average = any(getattr(callback, "keeps_average", False) for callback in callbacks)
    if AVERAGED in checkpoint and not keeps_average and not allows(_AVERAGE, config["ckpt_allow"]):
        raise ConfigError(
            "ckpt holds averaged weights, which this run would not continue: add the callback, as "
            f"callbacks=[default,average], or drop them with ckpt_allow=[{_AVERAGE}]."
        )


def _log_changed_code(saved: Any, current: Mapping[str, str]) -> None:
    """Logs which of a user's own classes have other code than when the checkpoint was saved."""
    saved = saved if isinstance(saved, Mapping) else {}
    if changed := [name for name in current if saved.get(name, current[name]) != current[name]]:
        log.warning(
            "ckpt: the code of %s has changed since it was saved, so the results may differ from "
            "those of an uninterrupted run",
            ", ".join(changed),
        )
