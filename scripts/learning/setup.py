"""One run of the comparison: its name, its overrides, and what it shares with all others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PLAIN = "nanogpt"  # the run that is trained by the plain script
WARMUP_STEPS = 100
LR, MIN_LR_RATIO = 6e-4, 0.1


@dataclass(frozen=True)
class Setup:
    """One run.

    Attributes:
        name: the name of the run in table and plot.
        overrides: overrides of xftrain's configuration, after those that all runs share.
        shared: overrides for all runs, such as the data and the model.
        steps: number of optimizer steps.
        eval_every: steps between two points of the curve.
        seed: seed of the weights and of the order of the data.
        device: `cuda` or `cpu`.
        precision: Lightning's name; `bf16-mixed` is autocast with float32 weights.
        compile: whether to use torch.compile.
    """

    name: str
    overrides: tuple[str, ...]
    shared: tuple[str, ...]
    steps: int
    eval_every: int
    seed: int = 0
    device: str = "cuda"
    precision: str = "bf16-mixed"
    compile: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, which can be passed to another process as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Setup:
        """Restores a setup from the result of `as_dict`."""
        lists = {key: tuple(values[key]) for key in ("overrides", "shared")}
        return cls(**{**values, **lists})


def config_overrides(setup: Setup) -> list[str]:
    """Returns the overrides for `xftrain.compose`; nanoGPT's recipe, unless a run overrides it.

    Rows are cut from the stream of tokens without regard to documents, as nanoGPT cuts them, so
    that all runs read the same tokens in the same order.
    """
    return [
        *("model=gpt_124m", "data=text", "data.packing=false"),
        *("seq=1024", "batch_tokens=32768", "data.tokenizer=bpe", "data.vocab_size=32768"),
        *(f"optim.lr={LR}", "schedule=cosine", f"schedule.min_lr_ratio={MIN_LR_RATIO}"),
        f"schedule.warmup_steps={min(WARMUP_STEPS, setup.steps // 10)}",
        f"seed={setup.seed}",
        f"max_steps={setup.steps}",
        f"compile={str(setup.compile).lower()}",
        f"trainer={'gpu' if setup.device == 'cuda' else 'cpu'}",
        f"trainer.precision={setup.precision}",
        f"trainer.val_check_interval={setup.eval_every}",
        "trainer.num_sanity_val_steps=0",
        "callbacks=[metrics,progress,watchdog]",
        "callbacks.progress.style=line",
        *setup.shared,
        *setup.overrides,
    ]
