"""A block of each kind, and the last norm, run on fake tensors to see what they keep.

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
from torch.utils._pytree import tree_leaves

from xftrain.interfaces import Attention, AttnCall, Backend, Batch
from xftrain.model import GPT
from xftrain.peak.saved_tensors import Recorder, SavedBytes


@dataclass(frozen=True)
class BlockBytes:
    """Bytes of one block.

    Attributes:
        kept: what the block keeps for its backward pass.
        ffn: of it, what its second half keeps but what goes into that.
        input: what goes into the block.
        backward: gradients inside a block while its backward pass runs: of its result, of the
            largest tensor, and what the backend says that it needs beside them.
    """

    kept: SavedBytes
    ffn: int
    input: int
    backward: int


@dataclass(frozen=True)
class Layers:
    """Bytes of the blocks, from the first, and of the last normalization.

    Attributes:
        blocks: of each layer; those of one kind are the same object.
        norm: what the last normalization keeps.
        norm_output: what comes out of it.
    """

    blocks: tuple[BlockBytes, ...]
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
    """Runs a copy of one block of each kind, and of the norm, in the run's dtypes.

    Args:
        model: on any device, torch's meta device included.
        batch: the first of the run.
        dtype: of matrix products and attention.
        device: where the run will be.
        is_mixed: whether weights are float32 and autocast copies them.
        is_compiled: whether blocks are, see `saved_tensors`.
    """
    wide = torch.float32 if is_mixed else dtype
    is_bf16 = dtype == torch.bfloat16 and model.residual_dtype == "auto"
    sizes = (*batch.shape_BM, model.embed.embedding_dim)
    cases = model.attention_cases(*batch.shape_BM, batch.seqlens, (device, dtype))
    call_of = {index: call for call, layers in cases for index in layers}
    found: dict[int, BlockBytes] = {}
    with _on_fake_tensors(device, dtype if is_mixed else None):
        x_BMD = torch.empty(sizes, dtype=dtype if is_bf16 else wide, device=device)
        x_BMD.requires_grad_()
        for block, layers in model.distinct_blocks():
            pos = model.position_encoding(layers[0])
            call = call_of[layers[0]]
            made = _run_block(block, pos, model.backend, x_BMD, call, wide, is_compiled=is_compiled)
            found |= dict.fromkeys(layers, made)
        norm = _copied(model.norm, wide, device)
        with Recorder(norm.parameters()) as recorder:
            last_BMD = norm(x_BMD.detach().requires_grad_())
        kept_by_norm = recorder.kept(last_BMD, compiled=is_compiled)
    blocks = tuple(found[index] for index in range(len(model.blocks)))
    return Layers(blocks, kept_by_norm.activations, last_BMD.nbytes)


def _run_block(
    block: nn.Module,
    pos: Any,
    backend: Backend,
    x_BMD: Tensor,
    call: AttnCall,
    wide: torch.dtype,
    *,
    is_compiled: bool,
) -> BlockBytes:
    """Runs a copy of a block, and of its second half alone, on fake tensors."""
    device = call.device
    positions_1M = torch.empty(1, call.shape.M, dtype=torch.int64, device=device)
    positions = _copied(pos, wide, device).prepare(positions_1M)
    attention, handle = _attention(backend, call)
    copied = _copied(block, wide, device)
    if (stand_in := getattr(copied.ffn, "stand_in", None)) is not None:
        copied.ffn = stand_in()
    shared = [leaf for leaf in tree_leaves(positions) if isinstance(leaf, Tensor)]
    with Recorder(copied.parameters(), shared) as recorder:
        made = copied(x_BMD, attention, handle, positions)
        added = copied.fed_forward(x_BMD)  # autocast keeps its copies of the weights
    kept = recorder.kept(made, compiled=is_compiled)
    kept_by_ffn = recorder.kept(added, compiled=is_compiled)
    return BlockBytes(
        kept=kept,
        ffn=max(0, kept_by_ffn.activations - x_BMD.nbytes),
        input=x_BMD.nbytes,
        backward=x_BMD.nbytes + kept.largest + backend.transient_bytes(call),
    )


def _attention(backend: Backend, call: AttnCall) -> tuple[Attention, Any]:
    """What stands for the backend on fake tensors, and its handle: itself where nothing does."""
    if (stand_in := backend.stand_in(call)) is not None:
        return stand_in, None
    return backend, backend.prepare(*call)


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
