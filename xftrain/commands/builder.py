"""Builds model, data and loss from a checked configuration, without Hydra."""

from __future__ import annotations

from typing import Any

import torch

from xftrain.config import registry
from xftrain.config.compose import validate_as
from xftrain.config.layer_pattern import layer_names, layer_options
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import ModelConfig, RunConfig
from xftrain.errors import ConfigError
from xftrain.interfaces import DataSource, Loss, Vocabulary
from xftrain.model.gpt import GPT
from xftrain.model.layer_spec import LayerSpec
from xftrain.model.softcap import SoftCapped

MAX_LAYERS = 2_000  # of an untrusted model; building takes time quadratic in their number
_VOCAB_MULTIPLE = 64  # for fast matmuls; GPT-2's 50257 tokens become 50304 rows


def build_model(cfg: Any, data: DataSource | None = None) -> GPT:
    """The GPT that a configuration describes, initialized from its seed, on the CPU.

    Args:
        cfg: what `xftrain.compose` or `compose.validate` returns.
        data: the data source, which defines the size of the vocabulary; None builds it from `cfg`
            if it is needed.

    Raises:
        ConfigError: the configuration is wrong.
    """
    checked = cfg if isinstance(cfg, RunConfig) else validate_as(RunConfig, cfg)
    if data is None and checked.model.vocab_size is None:
        data = build_data(checked)
    torch.manual_seed(checked.seed)
    return assemble(checked.model, vocab_size(checked.model, data))


def vocab_size(model: ModelConfig, data: DataSource | Vocabulary | None) -> int:
    """The number of embedding rows: `model.vocab_size`, or the data's rounded up."""
    configured = model.vocab_size
    if configured is None:
        assert data is not None
        return -(-data.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    if data is not None and configured < data.vocab_size:
        raise ConfigError(
            f"model.vocab_size must be at least the data's {data.vocab_size} tokens, got "
            f"{configured}: raise it, or set it to null."
        )
    return configured


def assemble(model: ModelConfig, num_tokens: int) -> GPT:
    """Builds the GPT with `num_tokens` embedding rows, on torch's current default device."""
    return GPT(
        registry.build(model.attn),
        _layer_specs(model),
        registry.factory(model.pos),
        registry.factory(model.norm),
        model,
        num_tokens,
    )


def _layer_specs(model: ModelConfig) -> list[LayerSpec]:
    """The layer specs of one period of the pattern; equal options share one object."""
    made: list[tuple[OptionConfig, Any]] = []

    def part(option: OptionConfig) -> Any:
        for known, part_of_known in made:
            if known == option:
                return part_of_known
        factory = registry.factory(option)
        is_bias = option.group == "model/bias"
        made.append((option, _bias_recipe(factory(), model) if is_bias else factory))
        return made[-1][-1]

    specs = {
        name: LayerSpec(
            part(options.bias),
            part(options.heads),
            part(options.ffn),
            None if options.pos == model.pos else part(options.pos),
        )
        for name, options in layer_options(model).items()
    }
    return [specs[name] for name in layer_names(model)]


def _bias_recipe(recipe: Any, model: ModelConfig) -> Any:
    return recipe if model.score_softcap is None else SoftCapped(recipe, model.score_softcap)


def build_data(cfg: RunConfig, world_size: int = 1) -> DataSource:
    """Builds the data source."""
    return registry.build(cfg.data, cfg.seq, cfg.batch_size, cfg.seed, world_size)


def build_loss(cfg: RunConfig) -> Loss:
    """Builds the loss."""
    return registry.build(cfg.loss)
