"""One block, its second half, and the last norm, run on fake tensors to see what they keep.

Fake tensors have sizes and no memory: nothing is allocated and no random number is drawn.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from xftrain.attention.backends.auto import Auto
from xftrain.attention.backends.sdpa import needs_mask
from xftrain.attention.folding import Fold, fold, folds
from xftrain.interfaces import Batch
from xftrain.model import GPT
from xftrain.peak.kept import Kept, Recorder

_FOLDING = ("sdpa", "xformers")  # what computes ALiBi by more features of q and k


@dataclass(frozen=True)
class Layers:
    """Bytes of one block and of the last normalization.

    Attributes:
        block: what a block keeps.
        ffn: of it, what its second half keeps but what goes into that.
        block_input: what goes into it.
        block_backward: gradients inside a block while its backward pass runs: of its result, of
            the largest tensor, and of the softmax as well as the scores where `naive` has them.
        norm: what the last normalization keeps.
        norm_output: what comes out of it.
    """

    block: Kept
    ffn: int
    block_input: int
    block_backward: int
    norm: int
    norm_output: int


def run_layers(
    model: GPT,
    batch: Batch,
    dtype: torch.dtype,
    device: torch.device,
    *,
    is_mixed: bool,
    is_compiled: bool,
) -> Layers:
    """Runs a copy of each, in the run's dtypes.

    Args:
        model: on any device, torch's meta device included.
        batch: the first of the run.
        dtype: of matrix products and attention.
        device: where the run will be.
        is_mixed: whether weights are float32 and autocast copies them.
        is_compiled: whether blocks are, see `kept`.
    """
    wide = torch.float32 if is_mixed else dtype
    is_narrow = dtype == torch.bfloat16 and model.residual_dtype == "auto"
    bias, shape = model.attention_facts(*batch.shape_BM, batch.seqlens)
    backend = model.backend.chosen if isinstance(model.backend, Auto) else model.backend
    name = getattr(backend, "name", None)
    with _on_fake_tensors(device, dtype if is_mixed else None):
        sizes = (*batch.shape_BM, model.embed.embedding_dim)
        x_BMD = torch.empty(sizes, dtype=dtype if is_narrow else wide, device=device)
        x_BMD.requires_grad_()
        positions_1M = torch.empty(1, shape.M, dtype=torch.int64, device=device)
        rotation = _copied(model.pos, wide, device).rotation(positions_1M)
        attention = _StandIn(
            fold(bias, shape, dtype, device) if name in _FOLDING and folds(bias) else None,
            pads_v=name == "xformers" or device.type == "cpu",
            keeps_scores=name == "naive",
            expands_heads=name == "sdpa" and device.type == "cuda" and needs_mask(bias),
        )
        block, norm = (_copied(part, wide, device) for part in (model.blocks[0], model.norm))
        if getattr(block.ffn, "impl", None) == "liger":
            block.ffn.impl = "torch"  # a Triton kernel takes no fake tensors
        with Recorder(block.parameters(), rotation or ()) as recorder:
            y_BMD = block(x_BMD, attention, None, rotation)
            added_BMD = block.fed_forward(x_BMD)  # autocast keeps its copies of the weights
        kept = recorder.kept(y_BMD, compiled=is_compiled)
        kept_by_ffn = recorder.kept(added_BMD, compiled=is_compiled)
        with Recorder(norm.parameters()) as recorder:
            last_BMD = norm(y_BMD.detach().requires_grad_())
        kept_by_norm = recorder.kept(last_BMD, compiled=is_compiled)
    return Layers(
        block=kept,
        ffn=max(0, kept_by_ffn.activations - x_BMD.nbytes),
        block_input=x_BMD.nbytes,
        block_backward=x_BMD.nbytes + kept.largest * (2 if name == "naive" else 1),
        norm=kept_by_norm.activations,
        norm_output=last_BMD.nbytes,
    )


@contextmanager
def _on_fake_tensors(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    casts = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with warnings.catch_warnings(), torch.enable_grad(), casts:
        warnings.simplefilter("ignore")  # the run itself will say so
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield


def _copied(module: nn.Module, wide: torch.dtype, device: torch.device) -> Any:
    """A copy with fake weights, so that a module that remembers something is left as it was.

    Args:
        module: on any device.
        wide: dtype of weights, where they are bfloat16 or float32.
        device: of the fake weights.
    """
    fakes: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        dtype = wide if tensor.dtype == torch.float32 else tensor.dtype
        fake = torch.empty(tensor.shape, dtype=dtype, device=device)
        is_weight = isinstance(tensor, nn.Parameter)
        fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
    return copy.deepcopy(module, fakes)


@dataclass(frozen=True)
class _StandIn:
    """Attention that keeps what a kernel keeps, and computes nothing.

    Attributes:
        fold: ALiBi's features, where the backend folds them in.
        pads_v: whether v is made as wide as q and k then.
        keeps_scores: whether the softmax of all scores is kept, as `naive` does.
        expands_heads: whether K and V are copied for each query head, as for a mask on a GPU.
    """

    fold: Fold | None
    pads_v: bool
    keeps_scores: bool
    expands_heads: bool

    def __call__(self, q_BMHK: Tensor, k_BMGK: Tensor, v_BMGK: Tensor, handle: Any) -> Tensor:
        width = v_BMGK.shape[-1]
        if self.fold is not None:
            q_BMHK, k_BMGK = self.fold(q_BMHK, k_BMGK)
            if self.pads_v:
                v_BMGK = F.pad(v_BMGK, (0, q_BMHK.shape[-1] - width))
        if self.expands_heads and (repeats := q_BMHK.shape[2] // k_BMGK.shape[2]) > 1:
            k_BMGK, v_BMGK = (x.repeat_interleave(repeats, dim=2) for x in (k_BMGK, v_BMGK))
        out_BMHK: Tensor = _Attention.apply(q_BMHK, k_BMGK, v_BMGK, self.keeps_scores)
        return out_BMHK if out_BMHK.shape[-1] == width else out_BMHK[..., :width]


class _Attention(torch.autograd.Function):
    """Keeps q, k, v, its result and a log-sum-exp; or q, k, v and the scores' softmax, widened."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, keeps_scores: bool) -> Tensor:
        B, M, H, _ = q.shape
        out = q.new_empty(B, M, H, v.shape[-1])
        if keeps_scores:
            wide = torch.promote_types(q.dtype, torch.float32)
            probs = q.new_empty(B, H, M, M, dtype=wide)
            ctx.save_for_backward(*(x.to(wide, copy=True) for x in (q, k, v)), probs)
        else:
            ctx.save_for_backward(q, k, v, out, q.new_empty(B, H, M, dtype=torch.float32))
        return out
