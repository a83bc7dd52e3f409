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
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from xftrain.interfaces import Attention, AttnBias, AttnShape, Backend, Batch
from xftrain.model import GPT
from xftrain.peak.kept import Kept, Recorder


@dataclass(frozen=True)
class Layers:
    """Bytes of one block and of the last normalization.

    Attributes:
        block: what a block keeps.
        ffn: of it, what its second half keeps but what goes into that.
        block_input: what goes into it.
        block_backward: gradients inside a block while its backward pass runs: of its result, of
            the largest tensor, and what the backend says that it needs beside them.
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
    with _on_fake_tensors(device, dtype if is_mixed else None):
        sizes = (*batch.shape_BM, model.embed.embedding_dim)
        x_BMD = torch.empty(sizes, dtype=dtype if is_narrow else wide, device=device)
        x_BMD.requires_grad_()
        positions_1M = torch.empty(1, shape.M, dtype=torch.int64, device=device)
        rotation = _copied(model.pos, wide, device).rotation(positions_1M)
        attention, handle = _attention(model.backend, bias, shape, dtype, device)
        block, norm = (_copied(part, wide, device) for part in (model.blocks[0], model.norm))
        if (stand_in := getattr(block.ffn, "stand_in", None)) is not None:
            block.ffn = stand_in()
        with Recorder(block.parameters(), rotation or ()) as recorder:
            y_BMD = block(x_BMD, attention, handle, rotation)
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
        block_backward=x_BMD.nbytes + kept.largest + _transient(model.backend, bias, shape, dtype),
        norm=kept_by_norm.activations,
        norm_output=last_BMD.nbytes,
    )


def _attention(
    backend: Backend, bias: AttnBias, shape: AttnShape, dtype: torch.dtype, device: torch.device
) -> tuple[Attention, Any]:
    """What stands for the backend on fake tensors, and its handle: itself where nothing else does.

    A backend of the user's own need not derive from `Backend`.
    """
    if (make := getattr(backend, "stand_in", None)) is not None:
        if (stand_in := make(bias, shape, dtype, device)) is not None:
            return stand_in, None
    return backend, backend.prepare(bias, shape, dtype, device)


def _transient(backend: Backend, bias: AttnBias, shape: AttnShape, dtype: torch.dtype) -> int:
    ask = getattr(backend, "transient_bytes", None)
    return 0 if ask is None else int(ask(bias, shape, dtype))


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
