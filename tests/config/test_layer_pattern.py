"""`model.layers`: what a layer may differ in, and who has to know that it does."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.models import VOCAB, random_tokens, sampled_without_cache
from tests.pairs.reference import attention
from tests.train.runs import last, result_of, run, same_weights
from xftrain.commands.builder import assemble
from xftrain.commands.preflight import check_runnable
from xftrain.config.compose import compose, validate, validate_as
from xftrain.config.layer_pattern import layer_options
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError
from xftrain.generation.cache import Cache
from xftrain.generation.generate import generate
from xftrain.interfaces import Batch, format_layers, positions_of
from xftrain.loss.full import Full
from xftrain.memory.prediction import predict
from xftrain.model.flops import flops_per_token
from xftrain.model.gpt import GPT
from xftrain.model.pos.learned import Learned
from xftrain.model.pos.rope import RoPE
from xftrain.model.prompts import max_new_tokens

SMALL = ("model.dim=32", "model.num_heads=4", "seq=24", "batch_tokens=96", "trainer=cpu")
WINDOW = "+model.layers.local.bias={name:window,window:5}"
TWO = ("model.layers.pattern=[local,whole]", WINDOW, "+model.layers.whole={}")
MIXED = (
    "model.layers.pattern=[local,whole]",
    "model.pos=rope",
    "+model.layers.local={bias:{name:window,window:5},heads:mqa,ffn:gelu}",
    "+model.layers.whole={pos:none,bias:alibi}",
)


def options(*overrides: str) -> RunConfig:
    return validate_as(RunConfig, compose(*SMALL, *overrides))


def gpt(*overrides: str, attn: str = "naive") -> GPT:
    torch.manual_seed(0)
    model = assemble(options("model.num_layers=4", f"model.attn={attn}", *overrides).model, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 5.0  # they start so small that attention hardly matters
    return model


# ---- what is typed


def test_a_part_is_a_word_a_mapping_or_a_change_of_the_models_own():
    chosen = options(
        "model.bias=window",
        "model.bias.window=9",
        "model.layers.pattern=[a,b,c]",
        "+model.layers.a.bias=alibi",
        "+model.layers.b.bias={name:window,window:3}",
        "+model.layers.c.bias={window:4}",
    )
    parts = layer_options(chosen.model)
    assert parts["a"].bias.node == {"name": "alibi", "impl": "folded", "window": None}
    assert parts["b"].bias.node == {"name": "window", "window": 3}
    assert parts["c"].bias.node == {"name": "window", "window": 4}
    assert parts["c"].pos == chosen.model.pos


def test_a_checked_configuration_is_checked_to_itself():
    chosen = options(*MIXED, "model.num_layers=2")
    assert validate(chosen.to_dict()) == chosen
    assert options().model.layers.to_dict() == {"pattern": None}


def test_the_built_in_pattern_repeats_over_the_depth():
    model = gpt("layers=local_global", "model.layers.local.bias.window=7", "model.num_layers=3")
    windows = [spec.bias.build(4, None).window for spec in model.specs]
    assert windows == [7, None, 7]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.layers.pattern=[a]"], "names 'a', which model.layers does not describe: add it"),
        (["model.layers.pattern=[]"], "must be a list of names or null, got []"),
        (["model.layers.pattern=[1]"], "must be a list of names or null, got [1]"),
        (
            ['model.layers.pattern=["a\\n[12:00] done"]'],
            "must have names of letters, digits, _ and",
        ),
        ([WINDOW], "model.layers describes local and has no pattern"),
        ([*TWO, "model.num_layers=1"], "names 2 layers and model.num_layers is 1"),
        ([TWO[0], WINDOW], "names 'whole', which model.layers does not describe, which has local"),
        ([*TWO, "+model.layers.whole.norm=rmsnorm"], "model.layers.whole.norm is not a key of"),
        ([*TWO, "+model.layers.whole.bias=windw"], "model.layers.whole.bias.name must be one of"),
        ([*TWO, "+model.layers.whole.bias={windw:3}"], "model.layers.whole.bias.windw is not a"),
        ([*TWO, "+model.layers.whole.bias=full"], "model.layers.whole.bias=full lets next-token"),
        ([*TWO, "+model.layers.whole.heads={name:gqa,num_kv_heads:3}"], "must divide model.num_h"),
        (
            [*TWO, "+model.layers.whole.pos={name:learned,max_positions:9}"],
            "adds to the embeddings",
        ),
        (
            ["model.layers.pattern=[a]", "+model.layers.a=window"],
            "must be a mapping from bias, pos",
        ),
        (["model.layers.pattern=[a]", "+model.layers.a={bias:3}"], "an option's name or a mapping"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(overrides, said):
    with pytest.raises(ConfigError) as refused:
        options(*overrides)
    assert said in str(refused.value) and "\n" not in str(refused.value)


class OwnPositions(Learned):
    """A class of the user's own, whose source the configuration's check does not read."""


def test_a_position_of_ones_own_that_changes_embeddings_is_that_of_no_single_layer():
    own = "{_target_:tests.config.test_layer_pattern.OwnPositions,max_positions:24}"
    chosen = options(*TWO, f"+model.layers.whole.pos={own}", "model.num_layers=2")
    with pytest.raises(ConfigError, match="OwnPositions, which adds to the embeddings"):
        assemble(chosen.model, VOCAB)


class Limited(RoPE):
    """Positions of single layers with a maximum."""

    def __init__(self, dim: int, head_dim: int, *, limit: int) -> None:
        super().__init__(dim, head_dim)
        self.max_positions = limit


@pytest.mark.parametrize("common", ["model.pos=rope", "model.pos.max_positions=24"])
def test_the_smallest_maximum_of_positions_holds_for_the_model(common):
    own = "{_target_:tests.config.test_layer_pattern.Limited,limit:9}"
    model = gpt(*TWO, f"+model.layers.whole.pos={own}", common)
    with pytest.raises(ConfigError, match=r"of pos in layers 1, 3 is 9, .* of 10 tokens: raise"):
        model(random_tokens(1, 10))
    prompt_BM = random_tokens(1, 6)
    num_tokens = max_new_tokens(model, prompt_BM.shape[1], 20)
    assert num_tokens == 4
    assert generate(model, prompt_BM, num_tokens, vocab_size=VOCAB).shape == (1, 10)
    with pytest.raises(ConfigError, match="is 9, too few for a document of 10"):
        generate(model, prompt_BM, num_tokens + 1, vocab_size=VOCAB)


# ---- what is computed


@pytest.mark.parametrize("seqlens", [None, (5, 12, 7)], ids=["rows", "packed"])
@pytest.mark.parametrize("attn", ["naive", "sdpa", "xformers"])
def test_each_layer_computes_its_own_options(attn, seqlens):
    model = gpt(*MIXED, attn=attn)
    tokens_BM = random_tokens(1, 24)
    wide = gpt(*MIXED).double()
    biases = [spec.bias.build(4, seqlens) for spec in wide.specs]
    with torch.no_grad():
        logits = model(tokens_BM, seqlens)
        x_BMD = wide.hidden(tokens_BM, positions_of(24, seqlens), biases, attention=attention)
        exact = F.linear(x_BMD, wide.head.weight)
    assert torch.allclose(logits.double(), exact, atol=1e-3, rtol=1e-3)
    for index, change in enumerate(("bias", "pos")):  # and nothing else would do
        specs = list(wide.specs)
        assert specs[0] != specs[1], (index, change)


def test_handles_are_one_for_each_distinct_bias():
    model = gpt(*TWO)
    cases = model.attention_cases(2, 24, None)
    assert [(case.call.bias.window, case.layers) for case in cases] == [(5, (0, 2)), (None, (1, 3))]
    handles = model.prepare(2, 24)
    assert handles[0] is handles[2] and handles[1] is handles[3] and handles[0] is not handles[1]
    assert model.prepare(2, 24)[1] is handles[1]  # kept while batches stay alike
    short = model.attention_cases(2, 4, None)  # in which the window hides nothing
    assert [case.layers for case in short] == [(0, 1, 2, 3)]


@pytest.mark.parametrize("overrides", [TWO, MIXED], ids=["window", "mixed"])
def test_sampling_with_its_cache_is_sampling_without(overrides):
    model = gpt(*overrides).double()
    prompt_BM = random_tokens(2, 9)
    made_BM = generate(model, prompt_BM, 12, vocab_size=VOCAB, temperature=0.0)
    assert torch.equal(made_BM, sampled_without_cache(model, prompt_BM, 12))


def test_a_windowed_layer_keeps_only_its_window():
    cache = Cache(gpt(*TWO), num_rows=3, num_positions=12)
    assert [layer.k_BCGK.shape for layer in cache.layers] == [(3, 5, 4, 8), (3, 12, 4, 8)] * 2
    assert cache.num_bytes == 2 * 4 * 3 * (2 * 5 + 2 * 12) * 4 * 8


def test_operations_count_the_window():
    tokens_BM = random_tokens(1, 24)
    batch = Batch(tokens_BM, tokens_BM, positions_of(24, None))
    all_seen, half = flops_per_token(gpt(), batch), flops_per_token(gpt(*TWO), batch)
    assert all_seen - half == 12 * 4 * 8 * 2 * (24 - 5)


def test_the_peak_is_the_sum_of_the_layers():
    tokens_BM = random_tokens(4, 24)
    batch = Batch(tokens_BM, tokens_BM, positions_of(24, None))

    def peak(*overrides: str) -> Any:
        chosen = options("model.num_layers=4", *overrides)
        with torch.device("meta"):
            model = assemble(chosen.model, VOCAB)
        return predict(chosen, model, Full(), batch, torch.float32, torch.device("cpu"))

    gelu, swiglu = peak("model.ffn=gelu"), peak("model.ffn=swiglu")
    both = peak(
        "model.layers.pattern=[a,b]", "+model.layers.a.ffn=gelu", "+model.layers.b.ffn=swiglu"
    )
    assert both.layers == (gelu.layers[0], swiglu.layers[0]) * 2


# ---- who has to know


@pytest.mark.parametrize(
    ("key", "right"), [("window", "bias.window"), ("num_kv_heads", "heads.num_kv_heads")]
)
def test_a_field_without_its_part_is_shown_with_it(key, right):
    with pytest.raises(ConfigError, match=rf"did you mean model\.layers\.local\.{right}\?"):
        options(*TWO, f"+model.layers.local.{key}=2")


def test_a_layer_that_cannot_run_is_named():
    chosen = options(*TWO, "model.num_layers=2", "model.attn=flex")
    tokens_BM = random_tokens(4, 24)
    batch = Batch(tokens_BM, tokens_BM, positions_of(24, None))
    with pytest.raises(ConfigError, match=r"cannot run model\.layers\.local\.bias=window with mod"):
        check_runnable(chosen, Full(), VOCAB, batch, torch.device("cpu"), torch.float32)


RUN = (*TWO, "model.num_layers=2", "max_steps=4", "callbacks.checkpoint.every_n_steps=2")


def test_a_run_with_a_pattern_trains_is_resumed_and_sampled(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        whole = run(tmp_path / "whole", *RUN, "model.attn=auto")
    assert whole["status"] == "completed"
    assert "layers=[local,whole]" in caplog.text
    run(tmp_path / "cut", *RUN, "model.attn=auto", "max_steps=2")
    run(tmp_path / "cut", *RUN, "model.attn=auto", "ckpt=auto")
    assert same_weights(last(tmp_path / "whole"), last(tmp_path / "cut"))
    from xftrain.commands.sample import sample

    asked = compose(f"ckpt={last(tmp_path / 'cut')}", "num_tokens=4", config_name="sample")
    assert sample(asked, tmp_path / "sampled")["status"] == "completed"
    assert result_of(tmp_path / "sampled")["error"] is None


@pytest.mark.parametrize(
    "change",
    [
        ["model.layers.pattern=[whole,local]"],
        ["model.layers.pattern=null", "~model.layers.local", "~model.layers.whole"],
        ["model.layers.local.bias.window=6"],
    ],
)
def test_another_pattern_is_another_run(tmp_path, change):
    run(tmp_path, *RUN, "max_steps=2")
    with pytest.raises(ConfigError, match=r"another configuration: .*model\.layers\."):
        run(tmp_path, *RUN, *change, "ckpt=auto")


def test_a_checkpoint_of_before_patterns_is_of_equal_layers(tmp_path):
    from xftrain.train.same_run import refuse_other_run

    now = options().to_dict()
    before = {**now, "model": {key: v for key, v in now["model"].items() if key != "layers"}}
    refuse_other_run(before, now)
    with pytest.raises(ConfigError, match="another configuration"):
        refuse_other_run(before, options(*TWO, "model.num_layers=3").to_dict())


def test_layers_are_listed_shortly():
    assert format_layers((3,)) == "layer 3"
    assert format_layers((0, 1, 2, 5, 7, 8)) == "layers 0-2, 5, 7-8"
