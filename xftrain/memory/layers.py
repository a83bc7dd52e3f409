"""Measures the activations of each kind of block, and of the last norm, on fake tensors.

Fake tensors have sizes but no memory: nothing is allocated and no random number is drawn.
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

from xftrain.interfaces import AttnCall, Backend, Batch
from xftrain.memory.saved_tensors import SavedBytes, SavedTensorRecorder
from xftrain.memory.transient import Source, attention_on_fake_tensors, attention_transient
from xftrain.model.gpt import GPT


@dataclass(frozen=True)
class BlockBytes:
    """Memory of one block, bytes.

    Attributes:
        saved: activations that the block saves for its backward pass.
        ffn: the part of `saved` that the feed-forward half saves, without its input.
        input: the block's input.
        backward: gradients during the block's backward pass: of its output, of its largest
            tensor, and the backend's temporary memory.
        attention_source: where the backend's temporary memory is known from.
    """

    saved: SavedBytes
    ffn: int
    input: int
    backward: int
    attention_source: Source


@dataclass(frozen=True)
class Layers:
    """Memory of the blocks and of the norms around them, bytes.

    Attributes:
        blocks: the memory of each layer, from the first; equal layers share an object.
        norm: activations that the last norm saves, and a norm of the embedding.
        norm_output: the output of the last norm.
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
        batch: the first batch of the run.
        dtype: dtype of matmuls and attention.
        device: the device of the run.
        is_mixed: whether weights are float32 and autocast copies them.
        is_compiled: whether blocks are compiled, see `saved_tensors`.
    """
    wide = torch.float32 if is_mixed else dtype
    is_bf16 = dtype == torch.bfloat16 and model.residual_dtype == "auto"
    sizes = (*batch.shape_BM, model.embed.embedding_dim)
    cases = model.attention_cases(*batch.shape_BM, batch.seqlens, (device, dtype))
    call_by_layer = {index: call for call, layers in cases for index in layers}
    by_layer: dict[int, BlockBytes] = {}
    with _on_fake_tensors(device, dtype if is_mixed else None):
        x_BMD = torch.empty(sizes, dtype=dtype if is_bf16 else wide, device=device)
        x_BMD.requires_grad_()
        for block, layers in model.distinct_blocks():
            pos = model.position_encoding(layers[0])
            call = call_by_layer[layers[0]]
            measured = _run_block(
                block, pos, model.backend, x_BMD, call, wide, is_compiled=is_compiled
            )
            by_layer |= dict.fromkeys(layers, measured)
        norm_saved, last_BMD = _run_norm(model.norm, x_BMD, wide, is_compiled=is_compiled)
        if model.norm_embed is not None:  # its input has the dtype of the embedding
            embedding_BMD = torch.empty(sizes, dtype=wide, device=device)
            norm_saved += _run_norm(model.norm_embed, embedding_BMD, wide, is_compiled=is_compiled)[
                0
            ]
    blocks = tuple(by_layer[index] for index in range(len(model.blocks)))
    return Layers(blocks, norm_saved, last_BMD.nbytes)


def _run_norm(
    norm: nn.Module, x_BMD: Tensor, wide: torch.dtype, *, is_compiled: bool
) -> tuple[int, Tensor]:
    """The activations that a copy of a norm saves, bytes, and its output."""
    copied = _copied(norm, wide, x_BMD.device)
    with SavedTensorRecorder(copied.parameters()) as recorder:
        out_BMD = copied(x_BMD.detach().requires_grad_())
    return recorder.saved_bytes(out_BMD, compiled=is_compiled).activations, out_BMD


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
    """Runs a copy of a block, and then only its feed-forward half, on fake tensors."""
    device = call.device
    positions_1M = torch.empty(1, call.shape.M, dtype=torch.int64, device=device)
    positions = _copied(pos, wide, device).prepare(positions_1M)
    attention, handle = attention_on_fake_tensors(backend, call)
    copied = _copied(block, wide, device)
    if (stand_in := getattr(copied.ffn, "stand_in", None)) is not None:
        copied.ffn = stand_in()
    shared = [leaf for leaf in tree_leaves(positions) if isinstance(leaf, Tensor)]
    with SavedTensorRecorder(copied.parameters(), shared) as recorder:
        made = copied(x_BMD, attention, handle, positions)
        added = copied.feed_forward(x_BMD)  # autocast caches its copies of the weights
    saved = recorder.saved_bytes(made, compiled=is_compiled)
    ffn_saved = recorder.saved_bytes(added, compiled=is_compiled)
    transient = attention_transient(backend, call)
    return BlockBytes(
        saved=saved,
        ffn=max(0, ffn_saved.activations - x_BMD.nbytes),
        input=x_BMD.nbytes,
        backward=x_BMD.nbytes + saved.largest + transient.num_bytes,
        attention_source=transient.source,
    )


@contextmanager
def _on_fake_tensors(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    casts = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with warnings.catch_warnings(), torch.enable_grad(), casts:
        warnings.simplefilter("ignore")  # the run itself will show them
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield


def _copied(module: nn.Module, wide: torch.dtype, device: torch.device) -> Any:
    """Copies a module with fake weights, so that the state of the original is unchanged.

    Args:
        module: the module, on any device.
        wide: dtype of the copy's weights that are bfloat16 or float32 in the module.
        device: device of the fake weights.
    """
    fakes: dict[int, Any] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        dtype = wide if tensor.dtype == torch.float32 else tensor.dtype
        fake = torch.empty(tensor.shape, dtype=dtype, device=device)
        is_weight = isinstance(tensor, nn.Parameter)
        fakes[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
    return copy.deepcopy(module, fakes)
