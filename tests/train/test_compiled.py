"""Compiled runs learn what runs that are not compiled learn."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from torch._functorch import partitioners
from torch.utils import flop_counter

from tests.train.runs import model_and_data, run
from xftrain.errors import ConfigError
from xftrain.kernels.operators import MATMULS
from xftrain.model.attn.naive import Naive
from xftrain.model.ffn.swiglu import SwiGLU
from xftrain.model.gpt import GPT
from xftrain.utils import compilation
from xftrain.utils.compilation import configure_compilation, reset_compilation

CPU = torch.device("cpu")

GPU = ("trainer=gpu", "model.attn=sdpa", "trainer.precision=bf16-mixed", "model.num_layers=2")


@pytest.mark.cuda
@pytest.mark.parametrize(
    "how",
    [
        ["compile=true"],
        ["compile=true", "model.activation_budget=0.3"],
        ["compile=true", "model.activation_checkpointing=true"],
        ["compile=true", "model.activation_checkpointing=ffn"],
    ],
    ids=" ".join,
)
def test_a_compiled_run_learns_the_same(tmp_path, how):
    longer = ("max_steps=30", "trainer.val_check_interval=10", "optim.lr=0.01")
    plain = run(tmp_path / "plain", *GPU, *longer)["metrics"]
    compiled = run(tmp_path / "compiled", *GPU, *longer, *how)["metrics"]
    assert compiled["val/loss"] == pytest.approx(plain["val/loss"], rel=0.03)
    assert compiled["train/grad_norm"] == pytest.approx(plain["train/grad_norm"], rel=0.2)
    assert plain["val/loss"] < 3.0  # of log 64 = 4.16 at the start


@pytest.mark.cuda
def test_a_budget_compiles_attention_of_fewer_heads_of_k_and_v(tmp_path):
    words = ("model.heads=gqa", "model.activation_budget=0.3", "max_steps=3")
    plain = run(tmp_path / "plain", *GPU, "model.heads=gqa", "max_steps=3")["metrics"]
    compiled = run(tmp_path / "compiled", *GPU, "compile=true", *words)["metrics"]
    assert compiled["val/loss"] == pytest.approx(plain["val/loss"], rel=0.03)


@pytest.mark.cuda
def test_a_smaller_budget_keeps_less(tmp_path):
    large = ("compile=true", "batch_tokens=65536", "seq=64", "max_steps=3", "model.dim=128")
    peaks = [
        run(tmp_path / budget, *GPU, *large, f"model.activation_budget={budget}")["peak_memory_mib"]
        for budget in ("1.0", "0.3")
    ]
    assert peaks[1] < 0.8 * peaks[0]


def test_a_budget_is_of_one_run(tmp_path, monkeypatch):
    # FlexAttention is compiled in any run, and would have been under the budget of the last one
    seen = []

    def compile_blocks(self, *, packed):
        configure_compilation(self.activation_budget)
        seen.append(torch._functorch.config.activation_memory_budget)

    monkeypatch.setattr(GPT, "compile_blocks", compile_blocks)
    run(tmp_path, "compile=true", "model.activation_budget=0.3", "max_steps=1")
    assert seen == [0.3]
    assert torch._functorch.config.activation_memory_budget == 1.0


def test_what_is_called_once_is_not_compiled():
    # a sample's every prompt has another length: seconds for each
    model, data = model_and_data()
    batch = data.batch("train", 0)
    model.compile_blocks(packed=False)
    naive = Naive()
    ((call, layers),) = model.attention_cases(*batch.shape_BM, None)
    handles = [naive.prepare(*call)] * len(layers)
    counters.clear()
    model.hidden(batch.tokens_BM, batch.positions_1M, handles, naive)
    assert counters["stats"]["calls_captured"] == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["trainer.accumulate_grad_batches=2"], "accumulate_grad_batches must be 1 with"),
        (["trainer.devices=2"], "devices must be 1 with"),
        (["model.activation_checkpointing=auto"], "must be false or ffn .* got auto"),
        (["model.activation_checkpointing=ffn"], "needs a CUDA GPU, got cpu"),
        (["loss=liger"], "loss=liger cannot run .* waits for the device"),
        (["optim=adafactor"], "optim=adafactor cannot run .* learning rate"),
        ([], "needs a CUDA GPU, got cpu"),
    ],
)
def test_graphs_are_refused_where_they_cannot_be(tmp_path, words, why):
    with pytest.raises(ConfigError, match=why):
        run(tmp_path, "compile=cudagraphs", *words)


def test_a_budget_is_refused_where_nothing_keeps_it(tmp_path):
    with pytest.raises(ConfigError, match="activation_budget needs compiled blocks"):
        run(tmp_path, "model.activation_budget=0.5")


def test_a_budget_counts_attention_of_fewer_heads_of_k_and_v(monkeypatch):
    # torch 2.11 counts none but equal ones, and such a model could not be compiled
    def equal_alone(query, key, value):
        assert query == key == value
        return 7

    monkeypatch.setattr(flop_counter, "sdpa_flop_count", equal_alone)
    compilation._count_grouped_attention_flops()
    compilation._count_grouped_attention_flops()
    assert flop_counter.sdpa_flop_count((2, 4, 33, 16), (2, 2, 33, 16), (2, 2, 33, 16)) == 7


def test_compiled_xformers_feed_forwards_look_nothing_up():
    # dynamo warns of a cache, which it would trace into
    ffn = SwiGLU(8, False, hidden_dim=16, impl="xformers")
    x = torch.randn(2, 3, 8)
    compiled = torch.compile(ffn, backend="eager")
    torch.testing.assert_close(compiled(x), ffn(x))
    torch._dynamo.reset()


def test_a_budget_recomputes_the_matmuls_of_this_package_last():
    # torch takes operators that it does not know for cheap ones
    model, _ = model_and_data("model.activation_budget=0.5", "compile=true")
    model.compile_blocks(packed=False)
    reset_compilation()
    assert partitioners.get_default_op_list().compute_intensive_ops >= set(MATMULS)
