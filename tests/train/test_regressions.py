"""Faults that a run once had, each by the way it showed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

import xftrain
from tests.data.listed import list_files
from tests.train.runs import last, result_of, rows_of, run, same_weights, small
from xftrain.config.compose import validate
from xftrain.errors import ConfigError, RunError
from xftrain.interfaces import AttnBias
from xftrain.kernels.decode_attention import decode_attention
from xftrain.utils.device_memory import peak_memory_mib, reset_peak_memory


def test_a_continued_run_takes_todays_rate_and_says_so(tmp_path, caplog):
    # torch restores the old rate with the optimizer's state: optim.lr was ignored without a word
    first, second = tmp_path / "first", tmp_path / "second"
    run(first)
    with caplog.at_level(logging.INFO):
        changed = ("optim.lr=1e-4", "optim.weight_decay=0.5", "schedule=constant")
        run(second, f"ckpt={last(first)}", "max_steps=12", "schedule.warmup_steps=0", *changed)
    assert rows_of(second, "optim/lr")[8] == pytest.approx(1e-4)
    assert "optim.lr 0.003 -> 0.0001" in caplog.text
    saved = torch.load(last(second), weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in saved] == [0.5, 0.0]


def test_a_checkpoint_at_the_last_step_says_that_nothing_is_left(tmp_path, caplog):
    run(tmp_path / "first")
    run(tmp_path / "second", f"ckpt={last(tmp_path / 'first')}")
    assert "nothing is left to train" in caplog.text


def test_solved_waits_for_the_end_of_a_step(tmp_path):
    # last.ckpt was saved between two accumulated batches, and the next step lost part of its sum
    shared = ("trainer.accumulate_grad_batches=3", "trainer.val_check_interval=2", "max_steps=8")
    run(tmp_path / "cut", *shared, "data.stop_at_accuracy=0")
    assert result_of(tmp_path / "cut")["steps"] == 2  # batch 6, not batch 2
    run(tmp_path / "cut2", *shared, "data.stop_at_accuracy=null", f"ckpt={last(tmp_path / 'cut')}")
    run(tmp_path / "whole", *shared, "data.stop_at_accuracy=null")
    assert same_weights(last(tmp_path / "cut2"), last(tmp_path / "whole"))


def test_a_diverged_run_fails_in_one_sentence(tmp_path):
    # it ended as "completed" with null metrics, or deep inside the sampler
    with pytest.raises(RunError, match="step 2 is not finite .*: lower optim.lr"):
        run(tmp_path, "optim.lr=1e20", "schedule.warmup_steps=0", "trainer.gradient_clip_val=null")
    assert result_of(tmp_path)["status"] == "failed"


def test_determinism_ends_with_the_run(tmp_path):
    run(tmp_path / "one", "deterministic=true")
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        run(tmp_path / "two")
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_the_peak_of_memory_is_of_this_run():
    # ru_maxrss is the largest of the process: every job of a sweep reported the largest job's
    cpu = torch.device("cpu")
    block = torch.ones(64 * 2**20)
    high = peak_memory_mib(cpu)
    del block
    reset_peak_memory(cpu)
    assert peak_memory_mib(cpu) < high - 200


def test_alibi_counts_past_256_positions_in_bfloat16():
    # the bias was computed in bfloat16, where 299 and 300 are the same number
    bias = AttnBias(slopes=(1.0,))
    torch.manual_seed(0)
    k, v = (torch.randn(1, 400, 1, 16, dtype=torch.bfloat16) for _ in range(2))
    q = torch.zeros(1, 1, 1, 16, dtype=torch.bfloat16)
    new = (q[:, 0], k[:, -1].clone(), v[:, -1].clone())
    out = decode_attention(*new, k, v, torch.tensor([399]), torch.ones(1), scale=0.25)
    weights = bias.materialize(400, first_query=399)[0].softmax(-1)
    want = weights @ v[0, :, 0].double()
    assert torch.allclose(out[0].double(), want, atol=2e-2)


def test_a_run_folder_as_tensorboards_folder(tmp_path, monkeypatch, caplog):
    # hydra.run.dir=. trained, and ended with an IndexError
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        run(Path("."))
        run(Path("outputs/day/time"))
    said = [r.getMessage() for r in caplog.records if "tensorboard --logdir" in r.getMessage()]
    assert said == ["tensorboard --logdir .", "tensorboard --logdir outputs"]


def test_run_folders_are_no_corpus(tmp_path):
    # data.path=. made logs and configurations of earlier runs into training text
    (tmp_path / "outputs" / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "outputs" / "run" / "xftrain.log").write_text("step 20")
    (tmp_path / "book.txt").write_text("text")
    files, skipped = list_files(tmp_path, leave_out=tmp_path / "cache")
    assert [file.name for file in files] == ["book.txt"] and skipped["run folder"] == 1


def test_preflight_knows_that_longer_documents_will_come(tmp_path):
    # only the first batch was asked; a later document was too long for folded ALiBi, mid-training
    overrides = ["data=counting_packed", "model.bias=alibi", "model.attn=sdpa", "model.pos=none"]
    with pytest.raises(ConfigError, match="folded over 12000 positions .*model.attn=naive"):
        many = ("model.num_heads=32", "model.dim=64", "seq=12000", "batch_tokens=12000")
        run(tmp_path, *overrides, *many, "seed=3")
    with pytest.raises(ConfigError, match="model.pos.max_positions is 12"):
        run(tmp_path, "data=counting_packed", "model.pos.max_positions=12")


@pytest.mark.parametrize("heads", ["mha", "mqa", "gqa"])
def test_presets_take_every_head_grouping(heads):
    # llama_1b set num_kv_heads itself, which mha and mqa then refused
    cfg = validate(small("model=llama_1b", f"model.heads={heads}", "model.num_heads=4"))
    assert cfg.model.heads.name == heads


def test_a_seed_that_numpy_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="seed must be an integer >= 0 and <= 4294967295"):
        validate(small(f"seed={2**32}"))


def test_an_entry_that_is_no_mapping_is_refused():
    with pytest.raises(ConfigError, match="callbacks.sample must be a mapping with a name or"):
        validate(small("callbacks.sample=5"))


def test_compiled_code_never_turns_eager_in_silence():
    # past 8 compilations of the shared Block.forward, later runs of a sweep were quietly eager
    xftrain.build_model(small()).compile_blocks(packed=False)
    assert torch._dynamo.config.recompile_limit >= 1024
    assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_a_result_that_cannot_be_written_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == "result.json":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConfigError, match="model.attn=flex cannot run"):
        run(tmp_path, "model.attn=flex")
    assert not list(tmp_path.glob(".result.json*")), "half a file is left"


def test_memory_is_a_figure_where_the_system_keeps_no_peak(monkeypatch):
    # without VmHWM, or with /proc closed, counting memory ended the run
    cpu = torch.device("cpu")
    usual = peak_memory_mib(cpu)

    def closed(self: Path, *args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    for reader in (closed, lambda self, **_: "VmRSS: 1 kB"):
        monkeypatch.setattr(Path, "read_text", reader)
        monkeypatch.setattr(Path, "write_text", closed)
        reset_peak_memory(cpu)
        assert 0.5 * usual < peak_memory_mib(cpu) < 20 * usual
