"""The checked configuration of each command, as frozen dataclasses, which are also its schema.

The fields are the keys that a user sets, with types, constraints and defaults. `compose.validate`
checks a composed configuration against them and returns these objects; `to_dict` returns the plain
values that a checkpoint holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

from xftrain.config.fields import (
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Seed,
)
from xftrain.config.option_config import OptionConfig

Accelerator = Literal["auto", "cpu", "gpu"]
Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed", "bf16-true"]
Options = Mapping[str, OptionConfig]  # several options, by the last part of their keys


@dataclass(frozen=True)
class Config:
    """A part of a checked configuration.

    Attributes:
        output: what the command of this configuration writes, where it does not train.
    """

    output: ClassVar[str | None] = None

    def to_dict(self) -> dict[str, Any]:
        """The plain values, as a checkpoint holds them; checking them returns an equal object."""
        return {item.name: _plain(getattr(self, item.name)) for item in fields(self)}


@dataclass(frozen=True, kw_only=True)
class GPTConfig(Config):
    """The sizes and settings of a GPT that belong to no option.

    Attributes:
        dim: D.
        num_layers: number of blocks.
        num_heads: H; D is a multiple of it.
        vocab_size: V; None takes it from the data.
        tie_embeddings: the output matrix is the embedding table.
        linear_bias: linear layers (and layer norms) add biases.
        dropout: dropout probability of the outputs of attention and feed-forward.
        init_std: standard deviation of the initial weights.
        logit_softcap: logits become `logit_softcap * tanh(logits / logit_softcap)`, as in Gemma 2
            (Riviere et al., 2024, arXiv:2408.00118); None does not cap them.
        init_residual: how the matrices that write into the residual stream start: `scaled` by the
            depth, or `zero`, so that each block begins as the identity.
        init_head: how the output matrix starts: `normal`, or `zero`, so that the first prediction
            is uniform; a tied one is the embedding.
        qk_norm: normalize each query and key head before its position is encoded.
        score_softcap: attention scores become `score_softcap * tanh(score / score_softcap)`
            before the bias is added (Gemma 2, arXiv:2408.00118); None applies no cap.
        norm_embedding: normalize the input of the first layer.
        activation_checkpointing: True recomputes each block in the backward pass; `ffn` only each
            feed-forward up to its last matmul, which saves more than half of a block's activations
            for a third to a half of its matmuls (selective recomputation, Korthikanti et al.,
            2022, arXiv:2205.05198); `auto` recomputes as little as fits into memory.
        residual_dtype: dtype of the residual stream: `auto` is bfloat16 if matmuls run in it,
            which halves memory and traffic between the blocks; `float32` always is float32.
        activation_budget: the share of activations that compiled blocks may save for the backward
            pass; the rest is recomputed, the cheapest first.
    """

    dim: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    vocab_size: PositiveInt | None
    tie_embeddings: bool = False
    linear_bias: bool = False
    dropout: Probability = 0.0
    init_std: PositiveFloat = 0.02
    logit_softcap: PositiveFloat | None = None
    init_residual: Literal["scaled", "zero"] = "scaled"
    init_head: Literal["normal", "zero"] = "normal"
    qk_norm: bool = False
    score_softcap: PositiveFloat | None = None
    norm_embedding: bool = False
    activation_checkpointing: bool | Literal["ffn", "auto"] = False
    residual_dtype: Literal["auto", "float32"] = "auto"
    activation_budget: Fraction = 1.0


@dataclass(frozen=True)
class LayersConfig:
    """A pattern of named layers that repeats over the depth, see `layer_pattern`.

    Attributes:
        pattern: the names of the layers of one period; None if all layers are alike.
        overrides: for each name of the pattern, the parts that differ from the model's own.
    """

    pattern: tuple[str, ...] | None = None
    overrides: Mapping[str, Options] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plain values, as a checkpoint holds them."""
        pattern = None if self.pattern is None else list(self.pattern)
        return {"pattern": pattern, **_plain(self.overrides)}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(GPTConfig):
    """`model`: a GPT and the options that it is made of."""

    attn: OptionConfig
    bias: OptionConfig
    pos: OptionConfig
    heads: OptionConfig
    ffn: OptionConfig
    norm: OptionConfig
    layers: LayersConfig = field(default_factory=LayersConfig)

    def option_configs(self) -> Iterator[OptionConfig]:
        """Every option, those of single layers included."""
        yield from (self.attn, self.bias, self.pos, self.heads, self.ffn, self.norm)
        for parts in self.layers.overrides.values():
            yield from parts.values()


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Config):
    """`trainer`: keys of Lightning's Trainer; `use_instead` names replacements of the others.

    Attributes:
        accelerator: `auto` is a GPU if there is one.
        devices: number of devices, each with its own process, see `ranks`; several devices use
            DistributedDataParallel.
        precision: `auto` depends on the device, see `hardware.resolve`.
        accumulate_grad_batches: batches per optimizer step.
        gradient_clip_val: largest gradient norm; None does not clip.
        log_every_n_steps: optimizer steps between records of the training metrics.
        val_check_interval: training batches between validations.
        num_sanity_val_steps: validation batches before the first step.
        limit_val_batches: validation batches to use, of all devices together; None is all, and 0
            disables validation.
        overfit_batches: number of training batches to repeat and to validate on; 0 is no limit.
            The data loaders implement it, since Lightning would replace samplers.
        detect_anomaly: raise an error that names the operation if the backward pass makes NaN.
        profiler: the profiler that measures where the time goes, see `build_profiler`.
        max_time: `days:hours:minutes:seconds` after which the run ends; None is no limit.
    """

    accelerator: Accelerator = "auto"
    devices: PositiveInt = 1
    precision: Precision = "auto"
    accumulate_grad_batches: PositiveInt = 1
    gradient_clip_val: PositiveFloat | None = 1.0
    log_every_n_steps: PositiveInt = 10
    val_check_interval: PositiveInt = 20
    num_sanity_val_steps: NonNegativeInt = 0
    limit_val_batches: NonNegativeInt | None = None
    overfit_batches: NonNegativeInt = 0
    detect_anomaly: bool = False
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    max_time: str | None = None


def rows_per_batch(data: OptionConfig, batch_tokens: int, seq: int) -> int:
    """Rows of a batch: `data.batch_size`, or `batch_tokens // seq` but at least 1."""
    asked: int | None = getattr(data, "batch_size", None)
    return asked or max(1, batch_tokens // seq)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """The configuration of a training run."""

    seq: PositiveInt = 64
    batch_tokens: PositiveInt = 4096
    max_steps: PositiveInt = 400
    seed: Seed = 0
    compile: bool | Literal["cudagraphs"] = False
    matmul: Literal["auto", "torch"] = "auto"
    deterministic: bool = False
    init_from: str | None = None
    init_weights: Literal["trained", "average"] = "trained"
    ckpt: str | None = None
    ckpt_allow: tuple[str, ...] = ()
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skipped_steps: NonNegativeInt = 10
    tags: tuple[str, ...] = ()
    model: ModelConfig
    data: OptionConfig
    loss: OptionConfig
    optim: OptionConfig
    schedule: OptionConfig
    trainer: TrainerConfig
    callbacks: Options
    logger: Options

    @property
    def batch_size(self) -> int:
        """Rows of a batch: `data.batch_size`, or `batch_tokens // seq` but at least 1."""
        return rows_per_batch(self.data, self.batch_tokens, self.seq)

    def option_configs(self) -> Iterator[OptionConfig]:
        """Every option of every group."""
        yield from self.model.option_configs()
        yield from (self.data, self.loss, self.optim, self.schedule)
        yield from self.callbacks.values()
        yield from self.logger.values()


def _plain(value: Any) -> Any:
    if isinstance(value, OptionConfig) or is_dataclass(value):
        return value.to_dict()  # type: ignore[union-attr]
    if isinstance(value, Mapping):
        return {key: _plain(child) for key, child in value.items()}
    return list(value) if isinstance(value, tuple) else value
