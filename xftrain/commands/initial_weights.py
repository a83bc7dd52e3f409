"""The weights that a run begins with, from `init_from`: weights alone, read into its own model.

The files are untrusted. Shapes are read first and compared with the model; the weights themselves
are read when the model has been built, one after the other where the file allows it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xftrain.checkpoint.averaged_weights import chosen_weights, no_average
from xftrain.checkpoint.file import described_checkpoint, read_checkpoint
from xftrain.checkpoint.header import header
from xftrain.checkpoint.safetensors_file import SafetensorsFile
from xftrain.commands import builder
from xftrain.commands.hub_model import HubWeights, read_hub_model
from xftrain.commands.initial_sizes import (
    EMBEDDING,
    HEAD,
    Shapes,
    differing_keys,
    matching_overrides,
    refuse_other_sizes,
    without_sizes,
)
from xftrain.config.former_model import completed_model
from xftrain.config.run_config import RunConfig
from xftrain.data.tokens.vocabulary import describe, is_trained_bpe
from xftrain.errors import ConfigError
from xftrain.interfaces import DataSource
from xftrain.model.gpt import GPT
from xftrain.train import distributed
from xftrain.train.same_data import shown_vocabulary, vocabulary_in
from xftrain.utils.files import real_path, refuse_escaping_path
from xftrain.utils.printable import one_line
from xftrain.utils.processes import rank

KEY, WEIGHTS = "init_from", "init_weights"
_MAX_ROWS = 1 << 31

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialWeights:
    """Weights by our names, of which only the shapes have been read.

    Attributes:
        named: the override that names them, for messages.
        shapes: their shapes.
        read: returns the weights; a mapping may read each when it is asked for.
        model: the `model` node of the model that they are of; empty if it is unknown.
        saved: the checkpoint's own entry, `xftrain`; empty if they are of no checkpoint.
        is_hub: whether they are of a Hugging Face folder.
    """

    named: str
    shapes: Shapes
    read: Callable[[], Mapping[str, Tensor]]
    model: Mapping[str, Any] = field(default_factory=dict)
    saved: Mapping[str, Any] = field(default_factory=dict)
    is_hub: bool = False

    def check(self, cfg: RunConfig, data: DataSource | None) -> None:
        """Compares the vocabulary and all sizes with those of the run.

        Args:
            cfg: the checked configuration.
            data: the data source; None takes the vocabulary's size from the weights, to refuse
                other differences before the data is prepared.

        Raises:
            ConfigError: they differ.
        """
        if data is None:
            num_tokens, num_rows = None, cfg.model.vocab_size or self._num_rows
        else:
            self._refuse_other_vocabulary(data)
            num_tokens, num_rows = data.vocab_size, builder.vocab_size(cfg.model, data)
        with torch.device("meta"):
            model = builder.assemble(cfg.model, num_rows)
        differing = differing_keys(self.model, cfg.to_dict()["model"])
        if self.is_hub and differing and data is None:
            words = matching_overrides(self.model, differing)
            log.info("%s: the overrides of its model are %s", self.named, words)
        refuse_other_sizes(self.named, self.shapes, model, num_tokens, differing.values())
        if data is not None and (others := without_sizes(differing)):
            log.warning(
                "%s: its model has %s, so this run does not begin with the same function",
                *(self.named, ", ".join(others)),
            )

    @property
    def _num_rows(self) -> int:
        """The rows of the embedding; 1 if there is none."""
        return max(1, next(iter(self.shapes.get(EMBEDDING, ())), 1))

    def _refuse_other_vocabulary(self, data: DataSource) -> None:
        """Refuses another vocabulary than that of the checkpoint's run."""
        own: Any = getattr(data, "vocabulary", None)
        there = vocabulary_in(self.saved)
        here = None if own is None else vocabulary_in({"vocabulary": describe(own)})
        if there and here and there != here and not is_trained_bpe(own, there):
            raise ConfigError(
                f"{self.named} was trained with another vocabulary, {shown_vocabulary(there)}, and "
                f"data has {shown_vocabulary(here)}: set data, or data.tokenizer, to the former."
            )

    def load_into(self, model: GPT) -> None:
        """Copies the weights into the model.

        Raises:
            ConfigError: the files have changed or are damaged, or the output matrix of a model
                with tied embeddings is another one.
        """
        copy_weights(model, self.read(), self.named)
        log.info("%s: the weights are read; the optimizer, data and step begin anew", self.named)


def copy_weights(model: GPT, weights: Mapping[str, Tensor], named: str) -> None:
    """Copies weights of the model's shapes into it, each after the other.

    Args:
        model: the model.
        weights: the weights by our names; an absent output matrix is the embedding, and a longer
            table of positions is cut.
        named: the override that names the weights, for messages.

    Raises:
        ConfigError: the embeddings are tied, and the output matrix is another one.
    """
    names, is_tied = set(weights), model.head.weight is model.embed.weight
    with torch.no_grad():
        for name, target in model.state_dict().items():
            source = weights[name if name in names else EMBEDDING]
            if name != HEAD or not is_tied:
                target.copy_(source[: len(target)] if target.ndim else source)
            elif not torch.equal(source.to(target), target):
                raise ConfigError(
                    f"{named} has an output matrix of its own, beside the embedding: set "
                    "model.tie_embeddings=false."
                )


def initial_weights(
    cfg: RunConfig, shown: Mapping[str, Any], ckpt: Path | None
) -> InitialWeights | None:
    """What `init_from` names; None without it, and where a checkpoint is resumed.

    Args:
        cfg: the checked configuration.
        shown: its plain values with secrets hidden.
        ckpt: the checkpoint to resume, or None.

    Raises:
        ConfigError: there is no such file, it cannot be read, or the run of the checkpoint began
            with other weights.
    """
    if cfg.init_from is None:
        return None
    if ckpt is None:
        return _described(Path(cfg.init_from), cfg)
    source = _source(shown)
    before = _source(_saved_config(ckpt)) if rank() == 0 else source
    if before != source:
        raise ConfigError(
            f"{KEY}={one_line(source)} is not what the run of ckpt={ckpt} began with, "
            f"{one_line(before)[:200]}: leave {KEY} out to resume that run, whose weights are "
            "in its checkpoint, or leave ckpt out to begin a new one."
        )
    log.info("%s is not read again, as the weights are those of ckpt", KEY)
    return None


def _source(config: Mapping[str, Any]) -> str:
    """What a run began with, as it is typed."""
    averaged = config.get(WEIGHTS) == "average"
    return f"{config.get(KEY)}{f' {WEIGHTS}=average' if averaged else ''}"


def _described(path: Path, cfg: RunConfig) -> InitialWeights:
    """Reads the shapes of the weights that a path names, for the model of a run."""
    named = f"{KEY}={one_line(str(path))}"
    refuse_escaping_path(path, named)
    if cfg.init_weights == "average" and (path.is_dir() or path.suffix == ".safetensors"):
        raise no_average(named, WEIGHTS)
    if path.is_dir():
        hub = read_hub_model(path, KEY, linear_bias=cfg.model.linear_bias)
        shapes, node = hub.weights.shapes, hub.config.to_dict()
        return InitialWeights(named, shapes, lambda: _checked(hub.weights), node, is_hub=True)
    if path.suffix == ".safetensors":
        file = SafetensorsFile(real_path(path) or path, named)
        return InitialWeights(named, file.shapes, lambda: file)
    content = described_checkpoint(path, KEY)
    weights = chosen_weights(content, cfg.init_weights, named, WEIGHTS)
    shapes = {name: weight.shape for name, weight in weights.items()}
    entry = content["xftrain"]
    model = entry["config"].get("model")
    return InitialWeights(
        named,
        shapes,
        lambda: chosen_weights(read_checkpoint(path, KEY), cfg.init_weights, named, WEIGHTS),
        completed_model(model) if isinstance(model, Mapping) else {},
        entry,
    )


def _checked(weights: HubWeights) -> HubWeights:
    weights.refuse_others()
    return weights


def _saved_config(ckpt: Path) -> Mapping[str, Any]:
    config: Any = (header(ckpt) or {}).get("config")
    return config if isinstance(config, Mapping) else {}


def with_vocab_size(
    cfg: RunConfig,
    shown: dict[str, Any],
    ckpt: Path | None,
    initial: InitialWeights | None,
    data: DataSource,
) -> tuple[RunConfig, dict[str, Any]]:
    """The configuration and its plain values, with `model.vocab_size=null` of such weights decided.

    The rows of the initial weights are those of the model if they are enough for the data, and not
    more than the data's rounded up. The decision is saved, so that a run that resumes has it too.

    Args:
        cfg: the checked configuration.
        shown: its plain values with secrets hidden.
        ckpt: the checkpoint to resume, or None.
        initial: the initial weights, or None.
        data: the data source.
    """
    if cfg.model.vocab_size is not None:
        return cfg, shown
    num_rows: Any = None
    if initial is not None:
        num_rows = initial.shapes[EMBEDDING][0]
    elif ckpt is not None and rank() == 0:
        saved = _saved_config(ckpt)
        model = saved.get("model")
        if saved.get(KEY) is not None and isinstance(model, Mapping):
            num_rows = model.get("vocab_size")
    num_rows = distributed.broadcast_from_rank_0(num_rows)
    if type(num_rows) is not int or not (
        data.vocab_size <= num_rows < builder.vocab_size(cfg.model, data)
    ):
        return cfg, shown
    log.info("model.vocab_size=null: %d, as in %s", num_rows, KEY)
    cfg = replace(cfg, model=replace(cfg.model, vocab_size=num_rows))
    return cfg, {**shown, "model": {**shown["model"], "vocab_size": num_rows}}
