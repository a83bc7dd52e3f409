"""What cannot run is refused before anything is built, with key, value and remedy."""

from __future__ import annotations

import json
import re

import pytest
import torch
from lightning.pytorch import Callback

import xftrain
from tests.models import changed, options
from xftrain.commands import builder
from xftrain.commands.preflight import _check_graphs, _parts_in_graphs, check_runnable
from xftrain.config import checks, registry
from xftrain.config.checks import check_compile
from xftrain.config.compose import compose
from xftrain.config.option_checks import checked_option
from xftrain.errors import ConfigError
from xftrain.model.ffn.swiglu import SwiGLU

CPU = torch.device("cpu")


def refusal(chosen, *, loss="full", vocab_size=64, dtype=torch.float32) -> str:
    data = builder.build_data(chosen)
    with pytest.raises(ConfigError) as refused:
        check_runnable(
            chosen,
            registry.build(checked_option("loss", {"name": loss})),
            vocab_size,
            data.batch("train", 0),
            CPU,
            dtype,
        )
    return str(refused.value)


def test_flex_on_the_cpu_is_refused_and_sdpa_named():
    said = refusal(options(attn="flex", bias="alibi", heads="gqa"), dtype=torch.bfloat16)
    assert said == (
        "model.attn=flex cannot run model.bias=alibi with model.heads=gqa in bfloat16 on cpu: "
        "torch has no backward of FlexAttention on cpu. Nearest choice that works: model.attn=sdpa."
    )


def test_the_nearest_choice_is_one_that_runs():
    # 65536 positions cannot be folded in float32, by sdpa no more than by xformers
    chosen = options(attn="xformers", bias="alibi", pos="none")
    chosen = changed(chosen, {"seq": 65536, "data.batch_size": 1})
    said = refusal(chosen)
    assert re.match(r"model\.attn=xformers cannot run model\.bias=alibi .* would round", said)
    assert said.endswith("Nearest choice that works: model.attn=naive.")


def test_liger_needs_a_gpu():
    liger = {"name": "swiglu", "impl": "liger"}
    assert (
        refusal(options(ffn=liger)) == "model.ffn.impl=liger needs a CUDA GPU, got cpu: use auto."
    )
    assert refusal(options(), loss="liger") == (
        "loss=liger needs a CUDA GPU, got cpu: use loss=chunked."
    )


def test_an_xformers_that_is_missing_is_said_and_what_to_install(monkeypatch):
    def missing():
        raise ImportError("xFormers is not installed: pip install xformers==0.0.35")

    monkeypatch.setattr("xftrain.model.attn.xformers_ops.loading.xformers_ops", missing)
    monkeypatch.setattr("xftrain.model.attn.xformers_ops.swiglu.xformers_ops", missing)
    assert SwiGLU(8, False, impl="xformers").unsupported(CPU)
    said = refusal(options(ffn={"name": "swiglu", "impl": "xformers"}))
    assert said == (
        "model.ffn.impl=xformers cannot run: xFormers is not installed: pip install "
        "xformers==0.0.35, or use auto."
    )
    said = refusal(options(attn="xformers"))
    assert "pip install xformers==0.0.35" in said and said.endswith("model.attn=sdpa.")


def test_documents_longer_than_the_positions_are_refused():
    chosen = changed(options(), {"model.pos.max_positions": 100})
    said = refusal(chosen)
    assert said == (
        "model.pos.max_positions is 100, too few for a document of 130 tokens: raise it, or use "
        "model.pos=rope."
    )


def test_a_vocabulary_too_small_for_the_data_is_refused():
    chosen = options()
    data = builder.build_data(chosen)
    with pytest.raises(ConfigError) as refused:
        builder.vocab_size(changed(chosen, {"model.vocab_size": 63}).model, data)
    assert str(refused.value) == (
        "model.vocab_size must be at least the data's 64 tokens, got 63: raise it, or set it to "
        "null."
    )
    assert builder.vocab_size(changed(chosen, {"model.vocab_size": 64}).model, data) == 64


@pytest.mark.parametrize("attn", [n for n in registry.option_names("model/attn") if n != "flex"])
def test_what_runs_is_let_through_without_allocating_the_model(attn):
    chosen = options(attn=attn, dim=2**16, num_layers=200, num_heads=2**12)  # terabytes
    data = builder.build_data(chosen)
    check_runnable(
        chosen, builder.build_loss(chosen), 64, data.batch("train", 0), CPU, torch.float32
    )


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.attn=flex"], ["model.attn=flex", "model.attn=sdpa"]),
        (["model.ffn.impl=liger"], ["model.ffn.impl=liger", "CUDA"]),
        (["loss=liger"], ["loss=liger", "CUDA"]),
        (["model.vocab_size=8"], ["model.vocab_size", "8", "raise it"]),
        (["model.pos.max_positions=8"], ["model.pos.max_positions", "8", "raise it"]),
        (
            ["trainer.precision=16-mixed"],
            ["trainer.precision=16-mixed", "needs a CUDA GPU", "bf16-mixed"],
        ),
        (
            ["model.pos=rope", "model.dim=30", "model.num_heads=2"],
            ["model.pos=rope", "got 15", "change"],
        ),
    ],
)
def test_a_run_is_refused_in_one_sentence_before_it_trains(overrides, parts, tmp_path):
    cfg = compose("trainer=cpu", "model.attn=naive", "seq=16", "model.dim=32", *overrides)
    with pytest.raises(ConfigError) as refused:
        xftrain.run(cfg, tmp_path)
    said = str(refused.value)
    assert all(part in said for part in parts), said
    assert said.endswith(".") and "\n" not in said
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["error"], result["steps"]) == ("refused", said, 0)
    assert not (tmp_path / "checkpoints").exists() and not list(tmp_path.glob("events*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"trainer\.accelerator=gpu needs a CUDA GPU.*trainer=cpu"
    ):
        xftrain.run(compose("trainer=gpu"), tmp_path)


class Unfit(SwiGLU, Callback):
    """A part that declares that it cannot be in a CUDA graph, as a feed-forward or a callback."""

    no_cuda_graph = "it waits for the device: use another"


def test_every_part_that_is_in_a_cuda_graph_is_asked():
    chosen = changed(options(), {"compile": "cudagraphs"})
    own = {"_target_": "tests.commands.test_preflight.Unfit"}
    data = builder.build_data(chosen)

    def said(cfg, part=lambda model: None) -> str:
        model, optim = builder.assemble(cfg.model, 64), registry.build(cfg.optim)
        if (found := part(model)) is not None:
            found.no_cuda_graph = Unfit.no_cuda_graph
        parts = _parts_in_graphs(cfg, model, None, optim)
        try:
            _check_graphs(cfg, parts, data.batch("train", 0), torch.device("cuda"))
        except ConfigError as error:
            return str(error).partition(" cannot run with compile=cudagraphs: it waits")[0]
        return ""

    assert said(chosen) == ""
    assert said(changed(chosen, {"model.ffn": own})) == "model.ffn in layers 0-1"
    assert said(changed(chosen, {"callbacks": {"mine": own}})) == "callbacks.mine"
    assert said(chosen, lambda model: model.backend) == "model.attn"
    assert said(chosen, lambda model: model.blocks[0].heads) == "model.heads in layers 0-1"
    assert said(chosen, lambda model: model.pos) == "model.pos in layers 0-1"
    groups = [{"match": "*up*", "optimizer": "adafactor"}]
    assert said(changed(chosen, {"optim": {"name": "adamw", "param_groups": groups}})).startswith(
        "Adafactor of optim.param_groups"
    )


@pytest.mark.parametrize(
    ("key", "option"),
    [("loss", "liger"), ("optim", "adafactor")]
    + [(f"model.{part}", None) for part in ("attn", "norm", "ffn", "heads", "pos", "bias")]
    + [("callbacks.metrics", None)],
)
def test_a_built_in_part_is_asked_before_torch_is_imported(key, option, monkeypatch):
    cfg = changed(options(), {"compile": "cudagraphs"})
    if option is None:
        group = key.partition(".")[0] if key.startswith("callbacks") else key.replace(".", "/")
        monkeypatch.setattr(
            checks,
            "declared",
            lambda g, name, attribute: "it waits: use another" if g == group else None,
        )
        key = key.partition(".")[0] if group == "callbacks" else key
    else:
        cfg = changed(cfg, {key: option})
    with pytest.raises(ConfigError, match=rf"^{key}\S* cannot run with compile=cudagraphs: it"):
        check_compile(cfg)


@pytest.mark.parametrize("key", ["loss", "optim"])
def test_a_class_of_ones_own_says_that_it_cannot_be_in_a_cuda_graph(key):
    class Own:
        no_cuda_graph = "it waits for the device: use another"

    chosen = changed(options(), {"compile": "cudagraphs"})
    data = builder.build_data(chosen)
    parts = {"loss": None, "optim": None, key: Own()}
    with pytest.raises(ConfigError, match=f"^{key} cannot run .*: it waits for the device: use"):
        _check_graphs(chosen, parts, data.batch("train", 0), torch.device("cuda"))
