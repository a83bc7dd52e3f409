"""The averaged weights that a checkpoint holds beside the trained ones.

A checkpoint is untrusted. Its content has tensors, or their descriptions if only those were read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from xftrain.checkpoint.plain_pickle import DescribedTensor
from xftrain.errors import ConfigError

AVERAGED = "averaged_weights"  # the key of a checkpoint
PREFIX = "model."  # of the names of weights in a checkpoint
Weights = Literal["trained", "average"]


def checked_averages(content: Mapping[str, Any], named: str) -> dict[str, Any] | None:
    """The averaged weights by the names of the trained ones; None if there are none.

    Args:
        content: content of a checkpoint, with its layout checked.
        named: the override that names it, for messages.

    Raises:
        ConfigError: names, shapes or kinds of numbers are not those of the trained weights.
    """
    averages, trained = content.get(AVERAGED), content["state_dict"]
    if averages is None:
        return None
    is_known = isinstance(averages, dict) and averages.keys() <= trained.keys()
    if not (is_known and all(_are_alike(one, trained[name]) for name, one in averages.items())):
        raise ConfigError(
            f"{named} holds averaged weights of another model than its trained ones: give another "
            "checkpoint."
        )
    return dict(averages)


def _are_alike(average: object, trained: Any) -> bool:
    return (
        isinstance(average, Tensor | DescribedTensor)
        and tuple(average.shape) == tuple(trained.shape)
        and average.dtype.is_floating_point
    )


def chosen_weights(
    content: Mapping[str, Any], weights: Weights, named: str, key: str = "weights"
) -> dict[str, Any]:
    """The trained or the averaged weights of a checkpoint, by the names of the model.

    What is not averaged, such as buffers, is that of the trained weights.

    Args:
        content: content of a checkpoint, with its layout checked.
        weights: which of them.
        named: the override that names the checkpoint, for messages.
        key: the key that chooses the weights, for messages.

    Raises:
        ConfigError: the checkpoint has no averaged weights.
    """
    chosen = dict(content["state_dict"])
    if weights == "average":
        averages = checked_averages(content, named)
        if averages is None:
            raise no_average(named, key)
        chosen |= averages
    return {name.removeprefix(PREFIX): weight for name, weight in chosen.items()}


def no_average(named: str, key: str) -> ConfigError:
    """The error if averaged weights are asked for where there are none."""
    return ConfigError(
        f"{named} holds no averaged weights: leave {key}=average out, or give a checkpoint of a "
        "run with callbacks=[default,average] that has reached callbacks.average.start_step."
    )
