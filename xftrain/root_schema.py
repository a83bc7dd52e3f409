"""The root keys of each command, and the resolvers of its configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from xftrain import redaction
from xftrain.fields import NonNegativeFloat, NonNegativeInt, PositiveInt, Seed
from xftrain.overrides import slug


@dataclass
class Root:
    """The root keys; the only schema in the ConfigStore, where any other would be an option."""

    seq: PositiveInt = 64
    batch_tokens: PositiveInt = 4096
    max_steps: PositiveInt = 400
    seed: Seed = 0
    compile: Any = False
    matmul: Any = "auto"
    deterministic: bool = False
    ckpt: str | None = None
    ckpt_allow: list[str] = field(default_factory=list)
    on_nonfinite: Any = "stop"
    max_skipped_steps: NonNegativeInt = 10
    tags: list[str] = field(default_factory=list)
    model: Any = MISSING
    data: Any = MISSING
    loss: Any = MISSING
    optim: Any = MISSING
    schedule: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING


@dataclass
class DoctorRoot:
    """The root keys of `--config-name doctor`, which trains nothing."""

    accelerator: Any = "auto"
    callbacks: Any = MISSING


@dataclass
class SampleRoot:
    """The root keys of `--config-name sample`, which has its model and data from a checkpoint.

    `model` holds the parts of a class of the user's own, which a checkpoint cannot bring.
    """

    ckpt: str | None = None
    prompt: str | None = None
    num_tokens: PositiveInt = 64
    temperature: NonNegativeFloat = 0.8
    top_k: PositiveInt | None = 40
    seed: Seed = 0
    accelerator: Any = "auto"
    model: Any = field(default_factory=dict)


@dataclass
class InfoRoot(Root):
    """The root keys of `--config-name info`: those of the run that it describes."""


ConfigStore.instance().store(name="root_schema", node=Root)
ConfigStore.instance().store(name="info_schema", node=InfoRoot)
ConfigStore.instance().store(name="sample_schema", node=SampleRoot)
ConfigStore.instance().store(name="doctor_schema", node=DoctorRoot)
# Hydra copies the whole store for each group that it lists, though what it loads is a copy anyway:
# half of the time of --help.
setattr(ConfigStore, "__deepcopy__", lambda self, memo: self)  # noqa: B010
OmegaConf.register_new_resolver(
    "xf.slug", lambda text: slug(redaction.hidden(str(text))), replace=True
)
OmegaConf.register_new_resolver("oc.env", redaction.read, replace=True)
OmegaConf.register_new_resolver("oc.decode", redaction.decode, replace=True)
# a folder that `run_folders` makes where a run starts; naming it makes nothing
OmegaConf.register_new_resolver("xf.new_folder", lambda path: path, replace=True)
OmegaConf.register_new_resolver(
    "xf.unless", lambda condition, value: None if condition else value, replace=True
)
