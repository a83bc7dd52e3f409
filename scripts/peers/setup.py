"""The settings that all peers share: sizes, optimizer, data, and xftrain's configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

LR = 6e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
LOG_EVERY = 10  # steps between two logged losses, which the plain loop reads synchronously


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model and of its batches.

    Attributes:
        model: option of xftrain's group `model`.
        num_layers: number of blocks.
        dim: model width.
        num_heads: number of query heads.
        num_kv_heads: number of key/value heads.
        hidden_dim: inner width of the feed-forward.
        vocab_size: vocabulary of the model and of the counting data.
        rows: rows per batch.
        seq: tokens per row.
    """

    model: str
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    hidden_dim: int
    vocab_size: int
    rows: int
    seq: int

    @property
    def is_llama(self) -> bool:
        """Whether the architecture is Llama's (rope, rmsnorm, swiglu, untied), not GPT-2's."""
        return self.model.startswith("llama")

    @property
    def form(self) -> str:
        """The architecture's name in the table."""
        return "Llama's form, untied" if self.is_llama else "GPT-2's form, tied"

    def tiny(self) -> Sizes:
        """Returns the same architecture, small enough for a CPU."""
        small = replace(self, num_layers=2, dim=64, num_heads=4, vocab_size=256, rows=2, seq=32)
        return replace(small, num_kv_heads=2 if self.is_llama else 4, hidden_dim=256)


SHAPES = {
    "124m": Sizes("gpt_124m", 12, 768, 12, 12, 3072, 50304, rows=32, seq=1024),
    "llama_1b": Sizes("llama_1b", 22, 2048, 32, 4, 5632, 32000, rows=4, seq=2048),
}


@dataclass(frozen=True)
class Setup:
    """One measurement.

    Attributes:
        peer: the peer's name: `kind`, `kind:backend` or `kind:backend:override+override`.
        sizes: sizes of the model and of its batches.
        steps: number of timed steps.
        warmup: number of steps before the timed ones.
        device: `cuda` or `cpu`.
        precision: Lightning's name; `bf16-mixed` is autocast with float32 weights.
        compile: whether to use torch.compile.
        overrides: overrides for all peers that use xftrain's configuration.
        lr: constant learning rate.
        seed: seed of the weights and the data.
    """

    peer: str
    sizes: Sizes
    steps: int = 60
    warmup: int = 20
    device: str = "cuda"
    precision: str = "bf16-mixed"
    compile: bool = True
    overrides: tuple[str, ...] = ()
    lr: float = LR
    seed: int = 0

    @property
    def kind(self) -> str:
        """The part of the name before the first colon."""
        return split_name(self.peer)[0]

    @property
    def optimizer(self) -> str:
        """The optimizer of all peers, in words."""
        return (
            f"fused AdamW, constant learning rate {self.lr:g}, betas {BETAS[0]} and {BETAS[1]}, "
            f"weight decay {WEIGHT_DECAY} of matrices except embeddings, gradients clipped to "
            f"norm {CLIP}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, which can be passed to another process as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Setup:
        """Restores a setup from the result of `as_dict`."""
        sizes = Sizes(**values["sizes"])
        return cls(**{**values, "sizes": sizes, "overrides": tuple(values["overrides"])})

    def without_overrides(self) -> Setup:
        """Returns the same setup without a choice of backend and without overrides."""
        return replace(self, peer=self.kind, overrides=())


def split_name(peer: str) -> tuple[str, str, list[str]]:
    """Splits a peer's name into kind, backend ("" if none is given) and overrides."""
    kind, backend, more = (peer.split(":", 2) + ["", ""])[:3]
    return kind, backend, [*filter(None, more.split("+"))]


def config_overrides(setup: Setup) -> list[str]:
    """Returns the overrides for `xftrain.compose`; those in the peer's name come last.

    Validation, checkpoints, the sample and the attention pattern are switched off, since no other
    peer has them, except for one validation at the end. Metrics, progress and the watchdog stay on.
    """
    sizes = setup.sizes
    _, backend, more = split_name(setup.peer)
    found = [
        f"model={sizes.model}",
        f"model.attn={backend or 'sdpa'}",
        f"model.num_layers={sizes.num_layers}",
        f"model.dim={sizes.dim}",
        f"model.num_heads={sizes.num_heads}",
        f"model.ffn.hidden_dim={sizes.hidden_dim}",
        "data=counting",
        f"data.vocab_size={sizes.vocab_size}",
        f"data.batch_size={sizes.rows}",
        "data.stop_at_accuracy=null",
        f"seq={sizes.seq}",
        f"seed={setup.seed}",
        f"max_steps={setup.warmup + setup.steps}",
        f"compile={str(setup.compile).lower()}",
        f"optim.lr={setup.lr}",
        f"optim.betas=[{BETAS[0]},{BETAS[1]}]",
        f"optim.weight_decay={WEIGHT_DECAY}",
        "schedule=constant",
        "schedule.warmup_steps=0",
        f"trainer={'gpu' if setup.device == 'cuda' else 'cpu'}",
        f"trainer.precision={setup.precision}",
        f"trainer.gradient_clip_val={CLIP}",
        f"trainer.log_every_n_steps={LOG_EVERY}",
        "trainer.val_check_interval=1000000000",
        "callbacks=[metrics,progress,watchdog]",
        "callbacks.progress.style=line",
    ]
    if sizes.num_kv_heads != sizes.num_heads:
        found.append(f"model.heads.num_kv_heads={sizes.num_kv_heads}")
    return [*found, *setup.overrides, *more]
