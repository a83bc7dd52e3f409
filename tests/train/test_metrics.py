"""Speed, operations and memory mean what they say."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.models import gpt, random_tokens
from tests.train.runs import model_and_data, rows_of, run
from xftrain.callbacks.metrics import Metrics
from xftrain.callbacks.progress import line_metrics
from xftrain.checkpoint.file import AtomicCheckpointIO
from xftrain.data.counting import Counting
from xftrain.interfaces import Batch, positions_of
from xftrain.model import flops
from xftrain.model.flops import describe_peak, flops_per_token, peak_flops
from xftrain.utils.device_memory import peak_memory_mib

CPU = torch.device("cpu")


def batch_of(num_positions: int, seqlens: tuple[int, ...] | None = None) -> Batch:
    tokens_BM = random_tokens(1, num_positions)
    return Batch(tokens_BM, tokens_BM, positions_of(num_positions, seqlens), seqlens)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pos", ["learned", "rope"])
def test_operations_per_token_counted_by_hand(tied, pos):
    D, L, V, F = 64, 2, 64, 192  # F: 8/3 D to a multiple of 64
    model = gpt(heads="gqa", pos=pos, tie_embeddings=tied)
    qkv = D * (64 + 2 * 32)  # 4 query heads, 2 K/V heads of 16
    block = qkv + D * D + 3 * D * F + 2 * D
    # the output matrix multiplies, be it the embedding or not; a table only looked up does not
    num_params = L * block + D + V * D
    for num_positions in (10, 130):
        want = 6 * num_params + 12 * L * 64 * num_positions
        assert flops_per_token(model, batch_of(num_positions)) == want
    # packed: the mean over tokens of the length of the token's own document
    mean_length = (30 * 30 + 100 * 100) / 130
    got = flops_per_token(model, batch_of(130, (30, 100)))
    assert got == pytest.approx(6 * num_params + 12 * L * 64 * mean_length)


def test_a_gpt2_token_takes_the_published_operations():
    # 6 N of 124 M is 0.75 GFLOP, attention over 1024 positions another 0.11
    with torch.device("meta"):
        model = gpt(
            dim=768,
            num_layers=12,
            num_heads=12,
            tie_embeddings=True,
            ffn="gelu",
            pos="rope",
        )
    per_token = flops_per_token(model, batch_of(1024))
    blocks = 12 * (12 * 768**2 + 2 * 768)
    assert per_token == 6 * (blocks + 768 + 64 * 768) + 12 * 12 * 768 * 1024


def test_no_mfu_where_the_peak_is_not_known(tmp_path):
    assert peak_flops(CPU, torch.float32) is None
    assert "unknown device (CPU), no MFU is logged" in describe_peak(CPU, torch.float32)
    assert "speed/mfu" not in run(tmp_path)["metrics"]


def test_mfu_is_operations_over_the_peak(tmp_path, monkeypatch):
    from xftrain.callbacks import metrics

    monkeypatch.setattr(metrics, "peak_flops", lambda device, dtype: 1e12)
    got = run(tmp_path, "trainer.accumulate_grad_batches=2")["metrics"]
    # 1 layer, width 32: qkv, out, swiglu of 128, norms; norm and head; 12 L H K M
    per_token = 6 * (3 * 32 * 32 + 32 * 32 + 3 * 32 * 128 + 64 + 32 + 64 * 32) + 12 * 32 * 16
    assert got["speed/mfu"] == pytest.approx(got["speed/tokens_per_s"] * per_token / 1e12)


def test_operations_are_of_all_batches_since_the_record_before(tmp_path):
    # the documents of the first batch of a run stood for those of all
    words = ("data=counting_packed", "trainer.accumulate_grad_batches=3", "max_steps=2")
    run(tmp_path, *words)
    model, data = model_and_data(*words)
    each = [flops_per_token(model, data.batch("train", step)) for step in range(6)]
    mean = sum(each) / 6
    assert abs(each[0] / mean - 1) > 1e-5
    (tflops,), (tokens_per_s,) = (
        rows_of(tmp_path, f"speed/{name}").values() for name in ("tflops", "tokens_per_s")
    )
    assert tflops * 1e12 / tokens_per_s == pytest.approx(mean, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "dtype", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, "high", 989.4e12),
        ("NVIDIA H200", torch.bfloat16, "high", 989.5e12),  # one chip, by two sheets
        ("NVIDIA H200", torch.float32, "highest", 67e12),
        ("NVIDIA H200", torch.float32, "high", 494.5e12),
        ("NVIDIA H200 NVL", torch.float16, "highest", 835.5e12),
        ("NVIDIA H200 NVL", torch.float32, "high", 417.5e12),
        ("NVIDIA H200 NVL", torch.float32, "highest", 60e12),
        ("NVIDIA Of The Future", torch.bfloat16, "high", None),
    ],
)
def test_peaks_are_of_the_vendor_without_sparsity(name, dtype, precision, peak, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    device = torch.device("cuda", 0)
    assert peak_flops(device, dtype) == peak
    said = describe_peak(device, dtype)
    assert name in said and ("no MFU is logged" in said) == (peak is None)


@pytest.mark.cuda
def test_peak_of_the_gpu_is_named():
    device = torch.device("cuda", 0)
    said = describe_peak(device, torch.bfloat16)
    assert flops.FORMULA in said and torch.cuda.get_device_name(device) in said
    assert peak_memory_mib(device) >= 0


def test_speed_counts_tokens_of_all_batches_and_the_time_between_records(tmp_path, monkeypatch):
    # a step takes at least 0.04 s, of two batches of 128 tokens
    batch = Counting.batch

    def slow(self, split, step, rank=0):
        time.sleep(0.02 if split == "train" else 0)
        return batch(self, split, step, rank)

    monkeypatch.setattr(Counting, "batch", slow)
    run(tmp_path, "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=100")
    for step, step_ms in rows_of(tmp_path, "speed/step_ms").items():
        assert step_ms >= 40
        tokens_per_s = rows_of(tmp_path, "speed/tokens_per_s")[step]
        assert tokens_per_s == pytest.approx(2 * 128 / (step_ms / 1e3))


def test_speed_leaves_out_validation_and_checkpoints(tmp_path, monkeypatch):
    # the time of checkpoints was counted as training
    pauses = []

    def slowed(function):
        def slow(*args, **kwargs):
            pauses.append(function.__name__)
            time.sleep(0.2)
            return function(*args, **kwargs)

        return slow

    batch, slow_batch = Counting.batch, slowed(Counting.batch)
    monkeypatch.setattr(
        Counting, "batch", lambda self, *at: (batch if at[0] == "train" else slow_batch)(self, *at)
    )
    save = slowed(AtomicCheckpointIO.save_checkpoint)
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    run(
        tmp_path,
        "trainer.val_check_interval=2",
        "callbacks.checkpoint.every_n_steps=2",
        "max_steps=4",
        "data.num_val_batches=1",
    )
    # of each step 2 and 4: last.ckpt, a validation, best.ckpt; before the first, a look at labels
    assert pauses.count("save_checkpoint") == 4 and pauses.count("batch") == 4
    steps_ms = rows_of(tmp_path, "speed/step_ms")
    assert list(steps_ms) == [2, 4]
    assert steps_ms[4] < 100  # what one pause alone would add


def test_the_typical_speed_leaves_the_first_interval_out():
    metrics = Metrics()
    assert metrics.typical_tokens_per_s() is None
    metrics.tokens_per_s = [7.0]
    assert metrics.typical_tokens_per_s() == 7.0
    metrics.tokens_per_s = [1.0, 50.0, 70.0, 60.0]
    assert metrics.typical_tokens_per_s() == 60.0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux")
def test_peak_memory_is_in_mib():
    status = Path("/proc/self/status").read_text()
    peak_kib = int(status.partition("VmHWM:")[2].split()[0])
    assert peak_memory_mib(CPU) == pytest.approx(peak_kib / 1024, rel=0.05)


def test_progress_shows_what_is_known():
    assert line_metrics({}) == ""
    assert line_metrics({"train/loss": 1.23456, "optim/lr": 1.0}) == "loss 1.2346"
    assert line_metrics({"train/accuracy": 0.5, "speed/tokens_per_s": 12345.6}) == (
        "accuracy 50.00%  12,346 tokens/s"
    )
