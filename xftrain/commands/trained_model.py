"""Loads a trained model from a checkpoint, for commands that use it without its training data.

The checkpoint is untrusted. It names the model's options, but no path that it names is opened: the
vocabulary is in the checkpoint, or in `tokenizer.json` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor

from xftrain.checkpoint.averaged_weights import chosen_weights, no_average
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import builder
from xftrain.commands.hub_trained import load_hub_folder
from xftrain.config.command_configs import CheckpointConfig
from xftrain.config.compose import model_of
from xftrain.config.composed_parts import with_own_parts
from xftrain.config.layer_pattern import layer_names
from xftrain.config.run_config import ModelConfig
from xftrain.data.tokens.vocabulary import old_checkpoint_vocabulary, rebuild
from xftrain.errors import ConfigError, first_line
from xftrain.interfaces import Vocabulary
from xftrain.model.gpt import GPT
from xftrain.train.same_run import refuse_other_model
from xftrain.utils import redaction
from xftrain.utils.files import expand_home
from xftrain.utils.printable import one_line

_BLOCKS = "blocks."  # prefix of the names of layer weights
_EXAMPLE = "ckpt=outputs/<date>/<run>/checkpoints/last.ckpt"


class TrainedModel(NamedTuple):
    """A model with its trained weights, and what its checkpoint holds beside them.

    Attributes:
        model: the model, on the CPU, in float32.
        config: its configuration.
        vocabulary: the vocabulary of its tokens.
        saved: the checkpoint's own entry, `xftrain`: untrusted plain values; of a folder, an empty
            configuration.
        step: number of optimizer steps that it was trained for.
        path: path of the checkpoint or folder.
    """

    model: GPT
    config: ModelConfig
    vocabulary: Vocabulary
    saved: Mapping[str, Any]
    step: int
    path: Path

    @property
    def trained_positions(self) -> int | None:
        """The positions that the model knows: its limit, or the run's `seq`; None if unknown.

        Positions without a limit, such as rope, can be computed past those of the run, but the
        model has never seen them.
        """
        seq = self.saved["config"].get("seq")
        is_usable = type(seq) is int and seq > 0
        return self.model.max_positions or (seq if is_usable else None)


def load_trained_model(cfg: DictConfig, config: CheckpointConfig) -> TrainedModel:
    """Loads the model that `ckpt` names: of a checkpoint, or of a Hugging Face folder.

    Args:
        cfg: the composed configuration of the command.
        config: the same configuration, checked.

    Raises:
        ConfigError: there is no such checkpoint, or it holds no model that can be built.
    """
    path = _path(config.ckpt)
    if path.is_dir():
        if config.weights == "average":
            raise no_average(f"ckpt={one_line(str(path))}, a Hugging Face folder,", "weights")
        if config.model:
            raise ConfigError(
                f"model.{next(iter(config.model))} cannot be your own class where ckpt is a "
                "Hugging Face folder, which has no such part: leave it out."
            )
        return TrainedModel(*load_hub_folder(path, "ckpt"), {"config": {}}, 0, path)
    checkpoint = read_checkpoint(path)
    vocabulary = _vocabulary(checkpoint, path.parent)
    model_config = _model_config(cfg, config, checkpoint)
    weights = chosen_weights(checkpoint, config.weights, "ckpt")
    model = _model(model_config, weights, vocabulary)
    saved, step = checkpoint["xftrain"], checkpoint["global_step"]
    return TrainedModel(model, model_config, vocabulary, saved, step, path)


def _path(ckpt: str | None) -> Path:
    if ckpt is None:
        raise ConfigError(f"ckpt is missing: name the checkpoint, as {_EXAMPLE}.")
    path = expand_home("ckpt", ckpt)
    if not path.is_file() and not (path / "config.json").exists():
        raise ConfigError(
            "ckpt must be an existing checkpoint file or Hugging Face folder, got "
            f"{ckpt!r}, as {_EXAMPLE}."
        )
    return path


def _vocabulary(checkpoint: Mapping[str, Any], folder: Path) -> Vocabulary:
    """The vocabulary of the checkpoint's tokens."""
    saved = checkpoint["xftrain"]
    if "vocabulary" in saved:
        return rebuild(saved["vocabulary"], folder)
    return old_checkpoint_vocabulary(saved["config"], checkpoint["global_step"])


def _model_config(
    cfg: DictConfig, config: CheckpointConfig, checkpoint: Mapping[str, Any]
) -> ModelConfig:
    """The checkpoint's model, with the user's own classes that this command composes again."""
    own = config.to_dict()
    shown = redaction.without_secrets(cfg, own)["model"]
    return model_of(with_own_parts(checkpoint["xftrain"]["config"], own["model"], shown))


def _model(config: ModelConfig, weights: Mapping[str, Tensor], vocabulary: Vocabulary) -> GPT:
    """Builds the checkpoint's model, after checking its sizes against those of the weights."""
    if config.num_layers > len(weights):
        raise ConfigError("ckpt holds fewer weights than its model has layers: give another one.")
    if config.num_layers > builder.MAX_LAYERS:
        raise ConfigError(
            f"ckpt holds a model of {config.num_layers:,} layers, and at most "
            f"{builder.MAX_LAYERS:,} can be loaded: give another one."
        )
    num_tokens = builder.vocab_size(config, vocabulary)
    try:
        planned = _planned(config, num_tokens)
        refuse_other_model(weights, planned)
        _refuse_shared(weights, planned)
        model = builder.assemble(config, num_tokens)
        model.load_state_dict(weights)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ConfigError(
            f"ckpt describes a model that cannot be built ({first_line(error)}): give another one."
        ) from error
    return model


def _refuse_shared(weights: Mapping[str, Tensor], planned: Mapping[str, Tensor]) -> None:
    """Refuses weights that share storage, since the built model would need far more memory.

    Only a tied head may share the embedding's storage. Dtypes may differ after a 16-bit run.
    """
    num_elements: dict[int, int] = {}  # of each storage, by its address
    for weight in weights.values():
        storage = weight.untyped_storage()
        count, address = storage.nbytes() // weight.itemsize, storage.data_ptr()
        num_elements[address] = max(count, num_elements.get(address, 0))
    num_held = sum(num_elements.values())
    head, embed = (weights.get(name) for name in ("head.weight", "embed.weight"))
    is_tied = head is not None and embed is not None and head.data_ptr() == embed.data_ptr()
    needed = sum(weight.numel() for weight in planned.values())
    needed -= planned["head.weight"].numel() if is_tied else 0
    if needed > num_held:
        raise ConfigError(
            f"ckpt holds {num_held:,} numbers for a model of {needed:,}, as its weights share "
            "them: give another one."
        )


def _planned(config: ModelConfig, num_tokens: int) -> dict[str, Tensor]:
    """The model's weights by name, without memory; only one layer of each kind is built."""
    names = layer_names(config)
    kinds = tuple(dict.fromkeys(names))
    layers = replace(config.layers, pattern=kinds) if any(kinds) else config.layers
    one_layer_of_each = replace(config, num_layers=len(kinds), layers=layers)
    with torch.device("meta"):
        built = builder.assemble(one_layer_of_each, num_tokens).state_dict()
    planned = {name: weight for name, weight in built.items() if not name.startswith(_BLOCKS)}
    weights_by_kind: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    for name in [name for name in built if name.startswith(_BLOCKS)]:
        index, _, rest = name.removeprefix(_BLOCKS).partition(".")
        weights_by_kind[kinds[int(index)]][rest] = built[name]
    for number in range(config.num_layers):
        weights = weights_by_kind[names[number % len(names)]].items()
        planned |= {f"{_BLOCKS}{number}.{rest}": weight for rest, weight in weights}
    return planned
