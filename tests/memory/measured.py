"""What autograd keeps and what is alive in a real step, to compare predictions with."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.models import gpt, random_tokens
from xftrain.config import registry
from xftrain.interfaces import Batch, Loss, positions_of
from xftrain.memory.layers import run_layers
from xftrain.model.block import RecomputePlan
from xftrain.model.gpt import GPT

CPU = torch.device("cpu")
NOTHING = RecomputePlan()
PLANS = [
    NOTHING,
    RecomputePlan(ffns=2),
    RecomputePlan(2, ffns=4),
    RecomputePlan(ffns=4),
    RecomputePlan(4),
]
ROWS, TOKENS = 3, 120
VARIANTS = [
    {},
    *({"ffn": name} for name in registry.option_names("model/ffn")),
    *({"norm": name} for name in registry.option_names("model/norm")),
    *({"pos": name} for name in registry.option_names("model/pos")),
    *({"heads": name, "pos": "rope"} for name in registry.option_names("model/heads")),
    {"attn": "naive"},
    {"attn": "naive", "heads": "gqa", "pos": "rope"},
    {"qk_norm": True, "heads": "gqa", "pos": "rope"},
    {"bias": "alibi"},
    {"bias": "alibi", "attn": "xformers"},
    {"residual_dtype": "float32"},
    {"linear_bias": True, "dropout": 0.1},
]


def batch_of(rows: int = ROWS, tokens: int = TOKENS) -> Batch:
    tokens_BM = random_tokens(rows, tokens)
    return Batch(tokens_BM, tokens_BM, positions_of(tokens, None))


def autocast(is_mixed: bool, device: str = "cpu"):
    return torch.autocast(device, torch.bfloat16) if is_mixed else contextlib.nullcontext()


def kept_by_block(
    chosen: dict, is_mixed: bool, *, compiled: bool, recomputes_ffn: bool = False
) -> tuple[int, int]:
    """Bytes of activations, and of weights in another dtype, that a real block keeps on the CPU."""
    torch._dynamo.reset()
    model = gpt(**{"attn": "sdpa"} | chosen)
    block, weights = model.blocks[0], list(model.blocks[0].parameters())
    shapes = {tuple(w.shape) for w in weights} | {tuple(w.t().shape) for w in weights}
    narrow = is_mixed and model.residual_dtype == "auto"
    x_BMD = torch.randn(ROWS, TOKENS, 64, dtype=torch.bfloat16 if narrow else torch.float32)
    rotation = model.pos.prepare(positions_of(TOKENS, None))
    outside = {t.untyped_storage().data_ptr() for t in (*weights, *(rotation or ()))}
    found: tuple[dict[int, int], dict[int, int]] = ({}, {})
    held = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held.append(storage)
        if storage.data_ptr() not in outside:
            found[tuple(tensor.shape) in shapes][storage.data_ptr()] = storage.nbytes()
        return tensor

    run = torch.compile(block, backend="aot_eager_decomp_partition") if compiled else block
    with autocast(is_mixed), saved_tensors_hooks(note, lambda tensor: tensor):
        handle = model.prepare(ROWS, TOKENS)
        run(x_BMD.requires_grad_(), model.backend, handle[0], rotation, recomputes_ffn)
    activations, casts = (sum(sizes.values()) for sizes in found)
    return activations, casts


def check_block(chosen: dict, is_mixed: bool, *, compiled: bool, rel: float) -> None:
    model = gpt(**{"attn": "sdpa"} | chosen)
    dtype = torch.bfloat16 if is_mixed else torch.float32
    layers = run_layers(model, batch_of(), dtype, CPU, is_mixed=is_mixed, is_compiled=compiled)
    activations, casts = kept_by_block(chosen, is_mixed, compiled=compiled)
    assert layers.blocks[0].saved.activations == pytest.approx(activations, rel=rel)
    assert layers.blocks[0].saved.casts == casts


class Alive(TorchDispatchMode):
    """The most bytes of tensors that are alive at once, of those that are ever used."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in self._alive.values()))
        return result

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive or self._alive[storage._cdata][0].expired():
            self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())


def steps(model: GPT, loss: Loss, batch: Batch, is_mixed: bool, device: str = "cpu"):
    """A function that makes a training step as Lightning does, and the optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        with autocast(is_mixed, device):
            handle = model.prepare(*batch.shape_BM)
            x_BMD = model.hidden(batch.tokens_BM, batch.positions_1M, handle)
            sums = loss(
                x_BMD.flatten(0, 1),
                model.head.weight,
                batch.labels_BM.flatten(),
                with_accuracy=False,
            )
            del x_BMD
        optimizer.zero_grad()  # which comes after the forward pass
        sums.loss.backward()
        optimizer.step()

    return step, optimizer
