"""A plain script in the form of nanoGPT's, on xftrain's batches and from its initial weights.

The recipe is that of github.com/karpathy/nanoGPT: AdamW with betas 0.9 and 0.95, weight decay 0.1
of matrices, clipping to norm 1, linear warm-up and cosine decay to a tenth, under autocast.
"""

from __future__ import annotations

import torch
from peers.loop import moved
from peers.nanogpt import NanoGPT, renamed
from peers.setup import BETAS, CLIP, WEIGHT_DECAY, Sizes
from torch import Tensor, nn

from learning.curve import CurveClock
from learning.setup import LR, MIN_LR_RATIO, Setup, config_overrides
from xftrain import compose
from xftrain.commands import builder
from xftrain.config.compose import validate_as
from xftrain.config.run_config import RunConfig
from xftrain.interfaces import DataSource, Split
from xftrain.schedule.cosine import Cosine
from xftrain.train.hardware import compute_dtype


class PlainRun:
    """A model, its data and its optimizer.

    Args:
        setup: the run; its own overrides do not apply, since the recipe is fixed.
    """

    def __init__(self, setup: Setup) -> None:
        config = validate_as(RunConfig, compose(*config_overrides(setup)))
        self.device = torch.device(setup.device)
        self.dtype = compute_dtype(setup.precision)
        self.data: DataSource = builder.build_data(config)
        weights = builder.build_model(config, self.data).state_dict()
        self.schedule = Cosine(warmup_steps=config.schedule.warmup_steps, min_lr_ratio=MIN_LR_RATIO)
        self.model = NanoGPT(sizes_of(config, weights)).to(self.device)
        self.model.load_state_dict(renamed(weights))
        self.loss = torch.compile(self.model) if setup.compile else self.model
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]  # embeddings included
        others = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
        self.num_steps = setup.steps

    def step(self, index: int) -> None:
        """Trains one step."""
        for group in self.optimizer.param_groups:
            group["lr"] = LR * self.schedule.factor(index, self.num_steps)
        self._mean_loss("train", index).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def val_loss(self) -> float:
        """The mean loss over the labels of the validation batches."""
        batches = range(self.data.num_val_batches)
        labels = [self.data.batch("val", index).labels_BM for index in batches]
        counts = torch.tensor([int((batch >= 0).sum()) for batch in labels])
        losses = torch.stack([self._mean_loss("val", index) for index in batches]).double().cpu()
        return float((losses * counts).sum() / counts.sum())

    def _mean_loss(self, split: Split, index: int) -> Tensor:
        tokens, labels = moved(self.data.batch(split, index), self.device)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            loss: Tensor = self.loss(tokens, labels)
        return loss


def sizes_of(config: RunConfig, weights: dict[str, Tensor]) -> Sizes:
    """The sizes of the plain model, which must have the shapes of xftrain's weights."""
    model = config.model
    return Sizes(
        "gpt_124m",
        num_layers=model.num_layers,
        dim=model.dim,
        num_heads=model.num_heads,
        num_kv_heads=model.num_heads,
        hidden_dim=weights["blocks.0.ffn.up.weight"].shape[0],
        vocab_size=weights["embed.weight"].shape[0],
        rows=config.batch_size,
        seq=config.seq,
    )


def train(setup: Setup) -> CurveClock:
    """Trains the plain script's run and returns its curve."""
    run = PlainRun(setup)
    clock = CurveClock(run.device, run.data.batch("train", 0).num_tokens)
    for index in range(setup.steps):
        run.step(index)
        clock.after_step(index + 1)
        if (index + 1) % setup.eval_every == 0 or index + 1 == setup.steps:
            clock.pause()
            clock.resume(run.val_loss())
    return clock
