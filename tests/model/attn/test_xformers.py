"""The import of xFormers and its traps, and the masks it is given."""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xftrain.interfaces import AttnBias, AttnCall, AttnShape
from xftrain.model.attn.xformers import XFormers
from xftrain.model.attn.xformers_ops import loading

CPU = torch.device("cpu")


@pytest.mark.long
def test_a_flash_attn_namespace_does_not_break_the_import(tmp_path):
    # flash-attn-4 makes `flash_attn` a namespace package, and xFormers takes it for version 2
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").touch()
    head = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    plain = head + "import xformers.ops"
    ours = head + (
        "from xftrain.model.attn.xformers_ops.loading import xformers_ops; xformers_ops(); "
        "import flash_attn.cute"  # and the package itself is there again afterwards
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        for code in (plain, ours)
    ]
    assert "flash_attn" in runs[0].stderr and runs[0].returncode == 1, "the trap is gone"
    assert runs[1].returncode == 0, runs[1].stderr


def test_a_namespace_is_hidden_within_and_there_again_afterwards(tmp_path, monkeypatch):
    # what the test above shows in processes of their own
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # any that is installed is not found
    for kind, is_hidden in (("", False), ("namespace", True), ("package", False)):
        if kind:
            (tmp_path / "flash_attn").mkdir(exist_ok=True)
        if kind == "package":
            (tmp_path / "flash_attn" / "__init__.py").touch()
        importlib.invalidate_caches()
        with loading._without_namespace_flash_attn():
            assert ("flash_attn" in sys.modules) == is_hidden
            assert not is_hidden or sys.modules["flash_attn"] is None
        assert "flash_attn" not in sys.modules


@pytest.mark.parametrize("has_gpu", [True, False])
@pytest.mark.parametrize("error", [OSError("libcudart.so.12"), None])
def test_a_library_that_did_not_load_is_told_where_a_gpu_needs_it(
    monkeypatch, caplog, has_gpu, error
):
    cpp_lib = importlib.import_module("xformers._cpp_lib")
    monkeypatch.setattr(cpp_lib, "_cpp_library_load_exception", error)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    loading._warn_about_cpp_library()
    assert ("C++ library did not load" in caplog.text) == (has_gpu and error is not None)


@pytest.mark.parametrize(("cuda", "loads"), [("13.0", True), ("12.8", False), (None, False)])
def test_the_cuda_12_runtime_is_loaded_for_a_torch_of_cuda_13(monkeypatch, cuda, loads):
    if not list(Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cuda_runtime")):
        pytest.skip("nvidia-cuda-runtime-cu12 is not installed here")
    loaded: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode=0: loaded.append((path, mode)))
    loading._preload_cuda12_runtime()
    assert bool(loaded) == loads
    if loads:
        assert "libcudart.so.12" in loaded[0][0] and loaded[0][1] == ctypes.RTLD_GLOBAL


def test_a_missing_xformers_is_a_reason_not_a_crash(monkeypatch):
    def absent() -> None:
        raise ImportError("xFormers is not installed: pip install xformers==0.0.35")

    monkeypatch.setattr("xftrain.model.attn.xformers_ops.loading.xformers_ops", absent)
    reasons = XFormers().unsupported(AttnBias(), AttnShape(1, 8, 2, 2, 8), torch.float32, CPU)
    assert len(reasons) == 1 and "pip install xformers==0.0.35" in reasons[0]


@given(
    seqlens=st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
    packed=st.booleans(),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 50),
)
def test_xformers_own_masks_mean_what_the_facts_mean(seqlens, packed, causal, window):
    bias = AttnBias(causal, window if causal else None, seqlens if packed else None)
    size = sum(seqlens)
    handle = XFormers().prepare(bias, AttnShape(1, size, 1, 1, 8), torch.float32, CPU)
    if handle.mask is None:
        assert bias.visible_MM(size).all()
        return
    theirs = handle.mask.materialize((size, size), device="cpu") == 0
    assert torch.equal(theirs.reshape(size, size), bias.visible_MM(size))


@pytest.mark.parametrize("window", [1, 100, 128, 200])
def test_window_tiles_of_the_cpu_operator_cover_long_rows(window):
    # rows of several tiles, whose keys overlap: values and gradients against the meaning
    torch.manual_seed(0)
    bias, shape = AttnBias(window=window), AttnShape(1, 500, 2, 2, 8)
    q, k, v, grad = (torch.randn(1, 500, 2, 8, dtype=torch.float64) for _ in range(4))
    backend = XFormers()
    handle = backend.prepare(bias, shape, torch.float64, CPU)

    def meant(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: object) -> torch.Tensor:
        scores = torch.einsum("bihk,bjhk->bhij", q, k) * shape.scale + bias.materialize(500)
        return torch.einsum("bhij,bjhk->bihk", scores.softmax(-1), v)

    results = []
    for attention in (backend, meant):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = attention(*leaves, handle)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, grad)])
    for ours, right in zip(*results, strict=True):
        assert torch.allclose(ours, right, atol=1e-12)


# ---- grouped heads


@pytest.mark.cuda
@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.parametrize(
    "bias", [AttnBias(), AttnBias(window=9), AttnBias(seqlens=(40, 24)), AttnBias(causal=False)]
)
def test_flash_reads_grouped_heads_as_they_are(bias, num_kv_heads):
    backend, shape = XFormers(), AttnShape(1, 64, 4, num_kv_heads, 32)
    device = torch.device("cuda")
    assert not backend.prepare(bias, shape, torch.bfloat16, device).expands
    assert "expanded" not in backend.kernel(bias, shape, torch.bfloat16, device)
    wide = backend.prepare(bias, shape, torch.float32, device) if bias.window is None else None
    assert wide is None or wide.expands  # cutlass wants as many heads as q has


def test_operators_are_asked_for_once_for_batches_of_other_lengths(monkeypatch):
    asked = []

    def ops(self, call, *, needs_grad):
        asked.append(call.bias.seqlens)
        return None, None

    monkeypatch.setattr(XFormers, "_ops", ops)
    backend, gpu = XFormers(), torch.device("cuda")  # which is not touched
    for seqlens in ((40, 24), (10, 54), (64,)):
        bias, shape = AttnBias(seqlens=seqlens), AttnShape(1, 64, 4, 2, 32)
        assert not backend._runs_grouped(AttnCall(bias, shape, torch.bfloat16, gpu))
    assert asked == [(40, 24)]
    for other in (torch.float16, torch.float32):
        backend._runs_grouped(AttnCall(AttnBias(), AttnShape(1, 64, 4, 2, 32), other, gpu))
    assert len(asked) == 3
