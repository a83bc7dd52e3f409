"""The checked configurations of the commands other than training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xftrain.config.fields import (
    Fraction,
    NonNegativeFloat,
    PositiveInt,
    Seed,
)
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import Accelerator, Config, Options, Precision, RunConfig

Template = Literal["messages", "completion"]


@dataclass(frozen=True, kw_only=True)
class InfoConfig(RunConfig):
    """The configuration of `--config-name info`: the configuration of the run it describes."""

    output = "a description"


@dataclass(frozen=True, kw_only=True)
class DataConfig(RunConfig):
    """The configuration of `--config-name data`: the configuration of the run it describes."""

    output = "a description"


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """The configuration of `--config-name doctor`, which trains nothing."""

    output = "the doctor"

    accelerator: Accelerator = "auto"
    callbacks: Options


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """The keys of commands that use a trained model, whose configuration is a checkpoint's.

    Attributes:
        ckpt: path of the checkpoint.
        weights: `average` takes the weights that the callback `average` has averaged.
        accelerator: `auto` is a GPU if there is one.
        model: the user's own model parts, which are not taken from a checkpoint.
    """

    ckpt: str | None = None
    weights: Literal["trained", "average"] = "trained"
    accelerator: Accelerator = "auto"
    model: Options = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(CheckpointConfig):
    """The configuration of `--config-name sample`.

    Attributes:
        prompt: the text to continue; None is a held-out document up to its first label, or its
            beginning, if its first token has a label.
        prompts: several texts to continue at once, instead of `prompt`.
        template: how a prompt is written as tokens: `messages` makes it a user's message, and
            `completion` puts a separator before it, as in the records of `data=chat`; None is the
            text alone.
        num_tokens: maximum number of tokens to add to each.
        num_samples: number of continuations of each prompt.
        temperature: 0 selects the most likely token.
        top_k: draw among the k most likely tokens; None is no limit.
        top_p: draw among the most likely tokens whose probabilities sum up to p; None is no limit.
        min_p: draw among tokens with at least this fraction of the highest probability; None is no
            limit.
        stop: texts that end a continuation, and are no part of it.
        stop_at_end: whether the token that separates documents ends a continuation.
        stream: whether the text is shown while it is generated.
        precision: `auto` is bf16-true on a GPU that has bfloat16, 16-mixed on another, and 32-true
            on a CPU.
        seed: seed of the draws.
    """

    output = "a sample"

    prompt: str | None = None
    prompts: tuple[str, ...] = ()
    template: Template | None = None
    num_tokens: PositiveInt = 64
    num_samples: PositiveInt = 1
    temperature: NonNegativeFloat = 0.8
    top_k: PositiveInt | None = 40
    top_p: Fraction | None = None
    min_p: Fraction | None = None
    stop: tuple[str, ...] = ()
    stop_at_end: bool = True
    stream: bool = False
    precision: Precision = "auto"
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CheckpointConfig):
    """The configuration of `--config-name evaluate`.

    Attributes:
        data: the data whose validation split is evaluated; None evaluates the tasks alone.
        tasks: JSONL files of multiple-choice questions.
        seq: tokens per row; None is that of the checkpoint's run.
        batch_tokens: tokens per validation batch; None is that of the checkpoint's run.
        max_tokens: maximum number of tokens that are computed at once.
        precision: `auto` depends on the device, see `hardware.resolve`.
        seed: seed of data that is made on demand.
    """

    output = "an evaluation"

    data: OptionConfig | None = None
    tasks: tuple[str, ...] = ()
    seq: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    max_tokens: PositiveInt = 16384
    precision: Precision = "auto"
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CheckpointConfig):
    """The configuration of `--config-name export`.

    Attributes:
        path: the folder to write, which must be new or empty.
        format: `hf` is a Hugging Face folder, which `transformers` loads without code of ours.
        dtype: dtype of the weights in it.
    """

    output = "an export"

    path: str | None = None
    format: Literal["hf"] = "hf"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


CommandConfig = (
    RunConfig
    | InfoConfig
    | DataConfig
    | DoctorConfig
    | SampleConfig
    | EvaluateConfig
    | ExportConfig
)
