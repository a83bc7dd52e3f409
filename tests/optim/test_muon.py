"""Runs with Muon: what it steps, what they resume, skip and refuse."""

from __future__ import annotations

import pytest
import torch

from tests.models import gpt
from tests.train.graph_stand_in import Again, graphs_on_cpu  # noqa: F401
from tests.train.runs import infinite_loss, last, rows_of, run, same_weights, weights_of
from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands.builder import assemble
from xftrain.config.compose import compose, validate
from xftrain.config.registry import option_names
from xftrain.errors import ConfigError
from xftrain.kernels.batched_muon import BatchedMuon
from xftrain.model.hidden_matrices import hidden_matrices
from xftrain.optim.adafactor import Adafactor
from xftrain.optim.adamw import AdamW
from xftrain.optim.muon import Muon
from xftrain.schedule.constant import Constant
from xftrain.train.nonfinite import skips_if_found_inf
from xftrain.train.same_run import refuse_other_optimizer

MUON = ("optim=muon", "model.dropout=0.1")
MATRICES = ("heads.qkv", "out", "ffn.up", "ffn.down")


def built(model, **settings):
    """The optimizer, and the names of the parameters of each of its groups."""
    optimizer, _ = Muon(**settings).build(model, Constant(warmup_steps=0), 9)
    names = {id(weight): name for name, weight in model.named_parameters()}
    return optimizer, [
        sorted(names[id(weight)] for weight in group["params"]) for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("preset", ["gpt_124m", "llama_1b"])
def test_the_matrices_of_the_blocks_and_nothing_else_are_stepped_by_muon(preset):
    cfg = validate(compose(f"model={preset}", "model.num_layers=2"))
    with torch.device("meta"):
        model = assemble(cfg.model, 512)
    optimizer, (hidden, *others) = built(model)
    assert hidden == sorted(f"blocks.{n}.{name}.weight" for n in (0, 1) for name in MATRICES)
    stepped = [name for group in (hidden, *others) for name in group]
    assert sorted(stepped) == sorted(dict(model.named_parameters()))  # each once
    muon, adamw = optimizer.parts
    assert type(muon) is BatchedMuon and isinstance(adamw, torch.optim.AdamW)
    assert [len(part.param_groups) for part in (muon, adamw)] == [1, len(others)]


@pytest.mark.parametrize("ffn", option_names("model/ffn"))
@pytest.mark.parametrize("heads", ["mha", "gqa"])
def test_the_rows_of_stacked_matrices_are_those_of_the_layer(ffn, heads):
    model = gpt(num_layers=1, heads=heads, ffn=ffn)
    found = {name: hidden_matrices(model)[w] for name, w in _matrices(model).items()}
    kv_rows = model.blocks[0].heads.num_kv_heads * 16
    assert found["blocks.0.heads.qkv.weight"] == (64, kv_rows, kv_rows)
    assert found["blocks.0.out.weight"] == (64,)
    is_gated = ffn in ("swiglu", "geglu")
    up = model.blocks[0].ffn.up.weight
    assert found["blocks.0.ffn.up.weight"] == ((len(up) // 2,) * 2 if is_gated else (len(up),))
    # queries, keys and values are those rows
    x = torch.randn(1, 3, 64)
    q, k, v = (part.flatten(2) for part in model.blocks[0].heads(x))
    parts = _matrices(model)["blocks.0.heads.qkv.weight"].split([64, kv_rows, kv_rows])
    for result, rows in zip((q, k, v), parts, strict=True):
        assert torch.allclose(result, x @ rows.mT, atol=1e-5)


def _matrices(model):
    hidden = hidden_matrices(model)
    return {name: weight for name, weight in model.named_parameters() if weight in hidden}


def test_a_block_matrix_that_is_shared_with_the_embedding_is_an_embedding():
    model = gpt(num_layers=1, vocab_size=64)
    model.blocks[0].out.weight = model.embed.weight
    _, (hidden, *others) = built(model)
    assert "blocks.0.out.weight" not in hidden and "embed.weight" in others[-1]


def test_patterns_give_embeddings_the_head_and_matrices_rates_of_their_own():
    model = gpt(num_layers=1, linear_bias=True)
    entries = [
        {"match": "embed.*", "lr": 0.3},
        {"match": "head.*", "lr": 0.02},
        {"match": "blocks.0.ffn.*", "lr": 0.1, "weight_decay": 0.5},
        {"match": "blocks.0.out.*", "optimizer": {"name": "adafactor", "lr": 0.4}},
    ]
    others = {"name": "adamw", "lr": 0.01, "weight_decay": 0.2, "betas": (0.5, 0.6)}
    optimizer, names = built(model, lr=0.05, others=others, param_groups=entries)
    found = [
        (g.get("name"), g["lr"], g["weight_decay"], n)
        for g, n in zip(optimizer.param_groups, names, strict=True)
    ]
    assert found[:2] == [
        (None, 0.05, 0.1, ["blocks.0.heads.qkv.weight"]),
        ("2", 0.1, 0.5, ["blocks.0.ffn.down.weight", "blocks.0.ffn.up.weight"]),
    ]
    assert ("0", 0.3, 0.0, ["embed.weight"]) in found
    assert ("1", 0.02, 0.2, ["head.weight"]) in found
    assert ("3", 0.4, 0.1, ["blocks.0.out.weight"]) in found
    assert ("2", 0.1, 0.5, ["blocks.0.ffn.down.bias", "blocks.0.ffn.up.bias"]) in found
    assert found[2][:3] == ("others", 0.01, 0.0) and "norm.weight" in found[2][3]
    kinds = [type(part) for part in optimizer.parts]
    assert kinds == [BatchedMuon, torch.optim.AdamW, torch.optim.Adafactor]
    assert optimizer.param_groups[2]["betas"] == (0.5, 0.6)


def test_muon_steps_the_matrices_of_a_pattern_and_its_others_the_rest():
    model = gpt(num_layers=1)
    optim = AdamW(
        param_groups=[{"match": "*", "optimizer": {"name": "muon", "others": "adafactor"}}]
    )
    kinds = {
        name: type(optim.option_by_parameter(model)[weight])
        for name, weight in model.named_parameters()
    }
    assert {name for name, kind in kinds.items() if kind is Muon} == _matrices(model).keys()
    assert {kind for name, kind in kinds.items() if name not in _matrices(model)} == {Adafactor}


def test_what_it_keeps_is_what_it_says():
    model = gpt(num_layers=1, linear_bias=True)
    optim = Muon()
    optimizer, _ = optim.build(model, Constant(), 10)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    options = optim.option_by_parameter(model)
    for parameter, state in optimizer.state.items():
        kept = sum(value.nbytes for name, value in state.items() if name != "step")
        assert kept == options[parameter].state_bytes(parameter)
    assert len(optimizer.state) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optim.others.lr=0"], "optim.others.lr must be a number > 0, got 0."),
        (["optim.others.lrs=1"], "optim.others.lrs is not a key of optim.others=adamw; did "),
        (["optim.others=adafactor", "+optim.others.lr=1"],
         "optim.others.name must be one of adafactor, adamw, muon, got no name: add one."),
        (["optim.others=adam"], "optim.others.name must be one of "),
        (["optim.others=muon"], "optim.others must be an optimizer of parameters of any shape, "),
        (["optim.others.name=adafactor", "optim.others.eps=1e-6"],
         "optim.others.eps is not a key of optim.others=adafactor"),
        (["optim.others={name:adafactor,clip_threshold:0.5}"],
         "optim.others.clip_threshold is a key of optim.others=adafactor that the default of "),
        (["+optim.others={_target_:own.Optimizer}"],
         "optim.others has both name and _target_, as overrides are merged into the default "),
        (["+optim.others.param_groups=[]"], "optim.others must have no param_groups: add an "),
        (["optim.param_groups=[{match:x,optimizer:{name:muon,others:{name:adamw,eps:0}}}]"],
         "optim.param_groups[0].optimizer.others.eps must be a number > 0, got 0."),
    ],
)  # fmt: skip
def test_its_others_are_checked_before_anything_is_built(overrides, said):
    with pytest.raises(ConfigError) as refused:
        validate(compose("optim=muon", *overrides))
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("override", "lr"),
    [
        ("optim.lr=0.5", 0.5),
        ("optim.others.lr=0.25", 0.25),
        ("optim.others=adafactor", Adafactor().lr),
    ],
)
def test_the_learning_rate_of_the_others(override, lr):
    cfg = validate(compose("optim=muon", override))
    assert cfg.optim.to_dict()["others"]["lr"] == lr
    assert Muon(**cfg.optim.options).others.lr == lr


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("optim.others.name=adafactor", {"lr": 0.5}),
        ("optim.others={name:adafactor,lr:0.25}", {"lr": 0.25}),
        ("+optim.others={name:adafactor,clip_threshold:2}", {"lr": 0.5, "clip_threshold": 2}),
    ],
)
def test_another_option_that_is_merged_into_the_default_others(override, changed):
    """Its keys that `adafactor` lacks, such as betas, were refused, though nobody had set them."""
    others = validate(compose("optim=muon", "optim.lr=0.5", override)).optim.to_dict()["others"]
    default = validate(compose("optim=adafactor")).optim.to_dict()
    del default["param_groups"]
    assert others == {**default, **changed}


def test_the_others_of_an_entry_have_its_learning_rate():
    entry = {"match": "*", "optimizer": {"name": "muon", "lr": 0.5}}
    optimizer, _ = AdamW(param_groups=[entry]).build(gpt(num_layers=1), Constant(), 9)
    assert {group["initial_lr"] for group in optimizer.param_groups} == {0.5}


def test_a_run_that_is_resumed_is_the_run(tmp_path):
    words = (*MUON, "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=1")
    run(tmp_path / "whole", *words, "max_steps=3")
    run(tmp_path / "cut", *words, "max_steps=2")
    run(tmp_path / "cut", *words, "max_steps=3", "ckpt=auto")
    whole, cut = (read_checkpoint(last(tmp_path / name)) for name in ("whole", "cut"))
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))
    states = (held["optimizer_states"][0]["state"].values() for held in (whole, cut))
    for one, two in zip(*states, strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
    rates = [rows_of(tmp_path / "whole", name) for name in ("optim/lr", "optim/lr/others")]
    assert rates[0] and rates[1].keys() == rates[0].keys()


def test_an_overflow_of_float16_is_skipped_and_other_steps_are_those_without_a_scale():
    models = [gpt(num_layers=1) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for model, scale in zip(models, (1.0, 4.0), strict=True):
        optimizer, _ = built(model)
        for step in range(3):
            torch.manual_seed(step)
            for weight in model.parameters():
                weight.grad = torch.randn_like(weight) * scale
            if scale == 1.0:
                optimizer.step()
                continue
            scaler.scale(torch.ones(()))  # creates the scale
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update(4.0)
    weights = [list(model.parameters()) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    before = [weight.detach().clone() for weight in weights[1]]
    for weight in weights[1]:
        weight.grad = torch.full_like(weight, float("inf"))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, weights[1], strict=True))


def test_others_are_compared_in_entries_too_and_not_in_an_own_class():
    """Those of entries were not, and in an own class the key may have another meaning."""

    def config(others=None, **optim):
        muon = {"name": "muon", "others": others} if others else "muon"
        return {"optim": {"param_groups": [{"match": "*", "optimizer": muon}], **optim}}

    refuse_other_optimizer(config(name="adamw"), config("adamw", name="adamw"))
    with pytest.raises(ConfigError, match="^ckpt holds the state of an .*'others': 'adamw'"):
        refuse_other_optimizer(config(name="adamw"), config({"name": "adafactor"}, name="adamw"))
    own = [{"optim": {"_target_": "own.Optimizer", "others": others}} for others in (1, 2)]
    refuse_other_optimizer(*own)


def test_the_state_of_other_others_is_refused(tmp_path):
    run(tmp_path, "optim=muon", "max_steps=1")
    with pytest.raises(ConfigError, match="^ckpt holds the state of optim.others=adamw, which "):
        run(tmp_path, "optim=muon", "optim.others=adafactor", "ckpt=auto")


def test_a_step_that_is_not_finite_is_skipped(tmp_path, monkeypatch):
    words = ("optim=muon", "trainer.log_every_n_steps=1")
    run(tmp_path / "before", *words, "max_steps=2")
    infinite_loss(monkeypatch, lambda trainer: trainer.global_step == 2)
    result = run(tmp_path / "skipped", *words, "max_steps=3", "on_nonfinite=skip")
    assert result["steps"] == 3
    assert same_weights(last(tmp_path / "before"), last(tmp_path / "skipped"))


def test_a_replayed_graph_steps_as_the_eager_run(tmp_path, graphs_on_cpu):  # noqa: F811
    words = (*MUON, "max_steps=5", "trainer.log_every_n_steps=1")
    run(tmp_path / "graph", *words, "compile=cudagraphs")
    assert Again.made == 3
    run(tmp_path / "eager", *words)
    graph, eager = (weights_of(last(tmp_path / name)) for name in ("graph", "eager"))
    assert all(torch.allclose(graph[name], eager[name], atol=1e-6) for name in eager)


def test_only_optimizers_that_can_all_be_captured_are_one_that_can():
    model = gpt(num_layers=1)
    optimizer, _ = built(model)
    assert "capturable" in optimizer.defaults and skips_if_found_inf(optimizer)
    optimizer, _ = built(model, others="adafactor")
    assert "capturable" not in optimizer.defaults and not skips_if_found_inf(optimizer)
