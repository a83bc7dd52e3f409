"""What a configuration means: the same steps in float64, eagerly, with attention as it is defined.

Attention is the softmax over `AttnBias.materialize`, the loss one cross-entropy over all logits,
accumulation a sum over all labels of a step, and the optimizer torch's own. Data, the schedule and
dropout's seeds are the run's, and so are the weights and the optimizer's state that a step begins
with: AdamW divides by the gradient's size, so rounding would part two runs soon. Rotary positions
are the one thing in float32, as `rotate` computes in it whatever comes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.pairs.spy import Step
from xftrain.commands import builder
from xftrain.config import registry
from xftrain.config.option_checks import checked_option
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import RunConfig
from xftrain.interfaces import IGNORED_LABEL, AttnBias, Batch
from xftrain.model.gpt import GPT
from xftrain.train.dropout_seed import dropout_seed


@dataclass
class Made:
    """What the steps come to, one by one.

    Attributes:
        losses: mean loss of each micro-batch.
        weights: after the step.
        moments: first moments of the gradients after the step, which are linear in these; of AdamW
            and Muon alone.
    """

    losses: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)


def attention(q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, bias: AttnBias) -> Tensor:
    """`softmax(scores + materialize()) v`, a query head's keys repeated for it."""
    M, H, K = q_BMHK.shape[1:]
    k, v = (x.repeat_interleave(H // x.shape[2], dim=2) for x in (k_BMGK, v_BMGK))
    scores_BHMM = torch.einsum("bihk,bjhk->bhij", q_BMHK, k) * (bias.scale or K**-0.5)
    if bias.softcap is not None:
        scores_BHMM = bias.softcap * torch.tanh(scores_BHMM / bias.softcap)
    probs_BHMM = (scores_BHMM + bias.materialize(M)).softmax(dim=-1)
    return torch.einsum("bhij,bjhk->bihk", probs_BHMM, v)


def build(cfg: RunConfig, num_tokens: int) -> GPT:
    """The run's model at its start, in float64."""
    attn = checked_option("model.attn", {"name": "naive"})
    ffn = _in_torch(cfg.model.ffn)
    model = replace(cfg.model, attn=attn, ffn=ffn, activation_checkpointing=False)
    torch.manual_seed(cfg.seed)
    return builder.assemble(model, num_tokens).double()


def _in_torch(option: OptionConfig) -> OptionConfig:
    return option.with_options(impl="torch") if "impl" in option.node else option


def loss_sum(model: GPT, batch: Batch, loss: Mapping[str, Any]) -> tuple[Tensor, Tensor, int]:
    """Summed cross-entropy, what is minimized, and the number of labels.

    Args:
        model: the reference's.
        batch: any.
        loss: the options of the run's loss.
    """
    biases = [spec.bias.build(model.num_heads, batch.seqlens) for spec in model.specs]
    x_BMD = model.hidden(batch.tokens_BM, batch.positions_1M, biases, attention=attention)
    logits_NV = F.linear(x_BMD, model.head.weight).flatten(0, 1)
    if (cap := model.logit_softcap) is not None:
        logits_NV = cap * torch.tanh(logits_NV / cap)
    labels_N = batch.labels_BM.flatten()
    how: dict[str, Any] = {"ignore_index": IGNORED_LABEL, "reduction": "sum"}
    plain = F.cross_entropy(logits_NV, labels_N, **how)
    smoothing, z_loss = loss.get("label_smoothing", 0.0), loss.get("z_loss", 0.0)
    smooth = F.cross_entropy(logits_NV, labels_N, label_smoothing=smoothing, **how)
    log_z_N = logits_NV[labels_N != IGNORED_LABEL].logsumexp(dim=-1)
    minimized = smooth + z_loss * (log_z_N**2).sum()
    return plain, minimized, len(log_z_N)


def train(cfg: RunConfig, model: GPT, data: Any, steps: Sequence[Step]) -> Iterator[Made]:
    """Makes each of a run's optimizer steps anew, from what it began with."""
    trainer = cfg.trainer
    recipe = registry.build(_in_torch(cfg.optim))
    shape = registry.build(cfg.schedule)
    optimizer, schedule = recipe.build(model, shape, cfg.max_steps)
    for group in optimizer.param_groups:
        if isinstance(
            group.get("eps"), tuple
        ):  # Adafactor's, which is otherwise of the weights' dtype
            group["eps"] = (torch.finfo(torch.float32).eps, group["eps"][1])
    named = dict(model.named_parameters())
    model.train()
    for number, step in enumerate(steps):
        made, sums, num_labels = Made(), [], 0
        load(model, step.weights)
        for name, state in step.state.items():
            optimizer.state[named[name]] = {
                key: value.clone() if key == "step" else value.double()
                for key, value in state.items()
            }
        for part in range(num_parts := trainer.accumulate_grad_batches):
            index = number * num_parts + part
            batch = data.batch("train", index % (trainer.overfit_batches or index + 1))
            torch.manual_seed(dropout_seed(cfg.seed, index, 0))
            plain, minimized, count = loss_sum(model, batch, cfg.loss.options)
            made.losses.append(float(plain.detach()) / count)
            sums.append(minimized)
            num_labels += count
        optimizer.zero_grad()
        (torch.stack(sums).sum() / num_labels).backward()
        if (limit := trainer.gradient_clip_val) is not None:
            torch.nn.utils.clip_grad_norm_(list(named.values()), limit)
        optimizer.step()
        schedule.step()
        for name, weight in named.items():
            made.weights[name] = weight.detach().clone()
            if (moment := first_moment(optimizer.state.get(weight, {}))) is not None:
                made.moments[name] = moment.clone()
        yield made


def first_moment(state: Mapping[str, Tensor]) -> Tensor | None:
    """The mean of the gradients that AdamW or Muon keeps of a weight."""
    return state.get("exp_avg", state.get("momentum_buffer"))


@torch.no_grad()
def load(model: GPT, weights: Mapping[str, Tensor]) -> None:
    """Tied weights have one name."""
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])


@torch.no_grad()
def validation_loss(cfg: RunConfig, model: GPT, data: Any, weights: Mapping[str, Tensor]) -> float:
    """The mean loss of these weights over the run's validation batches."""
    trainer = cfg.trainer
    load(model, weights)
    model.eval()
    chosen = [("val", step) for step in range(data.num_val_batches)]
    if trainer.overfit_batches:
        chosen = [("train", step) for step in range(trainer.overfit_batches)]
    total, num_labels = 0.0, 0
    for split, step in chosen[: trainer.limit_val_batches]:
        loss, _, count = loss_sum(model, data.batch(split, step), {})
        total, num_labels = total + float(loss), num_labels + count
    return total / num_labels if num_labels else math.nan
