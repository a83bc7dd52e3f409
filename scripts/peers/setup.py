"""What all peers have in common: sizes, optimizer, data, and the configuration of xftrain."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

LR = 6e-4
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP = 1.0
LOG_EVERY = 10  # steps between two looks at the loss, for which a plain loop waits


@dataclass(frozen=True)
class Sizes:
    """A model and its batch.

    Attributes:
        model: option of xftrain's group `model`.
        num_layers: blocks.
        dim: width.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        hidden_dim: inner width of the feed-forward.
        vocab_size: rows of the embedding, and tokens that the data counts with.
        rows: a batch's.
        seq: tokens of a row.
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
        """Llama's form: rope, rmsnorm, swiglu, untied; else GPT-2's."""
        return self.model.startswith("llama")

    @property
    def form(self) -> str:
        """What a model of exactly this form is called in the table."""
        return "Llama's form, untied" if self.is_llama else "GPT-2's form, tied"

    def tiny(self) -> Sizes:
        """The same form, small enough for a CPU."""
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
        peer: its name, as typed: `kind`, `kind:backend` or `kind:backend:override+override`.
        sizes: of the model and the batch.
        steps: timed ones.
        warmup: steps before them.
        device: `cuda` or `cpu`.
        precision: Lightning's word: `bf16-mixed` is autocast over float32 weights.
        compile: torch.compile.
        overrides: of every peer that has xftrain's configuration.
        lr: constant.
        seed: of the weights and the data.
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
        """What comes before the first colon of the name."""
        return in_parts(self.peer)[0]

    @property
    def optimizer(self) -> str:
        """What all peers are trained by."""
        return (
            f"fused AdamW, a constant rate of {self.lr:g}, betas {BETAS[0]} and {BETAS[1]}, weight "
            f"decay {WEIGHT_DECAY} of matrices and not of embeddings, gradients clipped to {CLIP}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, to be sent to another process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Setup:
        """What `as_dict` gave."""
        sizes = Sizes(**values["sizes"])
        return cls(**{**values, "sizes": sizes, "overrides": tuple(values["overrides"])})

    def plain(self) -> Setup:
        """The same without a choice of backend and without overrides."""
        return replace(self, peer=self.kind, overrides=())


def in_parts(peer: str) -> tuple[str, str, list[str]]:
    """The kind, the backend, "" where there is none, and the overrides of a name as typed."""
    kind, backend, more = (peer.split(":", 2) + ["", ""])[:3]
    return kind, backend, [*filter(None, more.split("+"))]


def config_overrides(setup: Setup) -> list[str]:
    """What `xftrain.compose` gets: the sizes and the optimizer, then what the name asks for.

    What a run does beside training is left out, as no peer does it: validation (one pass when the
    training has ended remains), checkpoints, the sample and the picture. Metrics, the progress and
    the watchdog stay.
    """
    sizes = setup.sizes
    _, backend, more = in_parts(setup.peer)
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
