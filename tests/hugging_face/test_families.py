"""Every class: transformers computes the same with the exported weights, which import unchanged."""

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.hugging_face.exports import CASES, config_of, model_of, write
from tests.models import VOCAB, options, random_tokens
from xftrain.commands.builder import assemble
from xftrain.config.compose import checked_model
from xftrain.errors import ConfigError
from xftrain.generation.generate import generate_texts
from xftrain.generation.sampling import Sampling
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.family import families, family_for
from xftrain.hugging_face.folder import read_folder

LENGTHS = (1, 5, 12, 40)  # of the prompts, in tokens
NUM_TOKENS = 64


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_the_same(tmp_path: Path, case: str) -> None:
    for num_steps in (0, 3):
        model = model_of(config_of(case), num_steps=num_steps)
        write(tmp_path, model)
        theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert type(theirs).__name__.startswith(CASES[case][0])
        assert not any(report.values())
        prompts = [random_tokens(length, seed=length) for length in LENGTHS]
        greedy = generate_texts(
            model,
            [prompt.tolist() for prompt in prompts],
            NUM_TOKENS,
            vocab_size=VOCAB,
            sampling=Sampling(temperature=0),
        )
        for prompt_M, one in zip(prompts, greedy.continuations, strict=True):
            ours = torch.cat([prompt_M, torch.tensor(one.tokens)])
            with torch.no_grad():
                logits = theirs(input_ids=ours[None]).logits
                torch.testing.assert_close(model(ours[None]), logits, rtol=0, atol=1e-5)
            # the most likely tokens after each part of it are the ones that we have made
            chosen = logits[0, len(prompt_M) - 1 : -1].argmax(-1)
            assert chosen.tolist() == list(one.tokens) and len(one.tokens) == NUM_TOKENS


@pytest.mark.parametrize("case", ["llama", "mistral", "smollm3", "gpt2", "mpt", "starcoder2"])
def test_its_own_generation_gives_the_same_text(tmp_path: Path, case: str) -> None:
    model = model_of(config_of(case))
    write(tmp_path, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt_M = random_tokens(5)
    greedy = generate_texts(
        model, [prompt_M.tolist()], 24, vocab_size=VOCAB, sampling=Sampling(temperature=0)
    )
    mask = torch.ones(1, 5, dtype=torch.int64)
    text = theirs.generate(prompt_M[None], attention_mask=mask, max_new_tokens=24, do_sample=False)
    assert text[0, 5:].tolist() == list(greedy.continuations[0].tokens)


@pytest.mark.parametrize("case", CASES)
def test_an_export_imports_unchanged(case: str) -> None:
    config = config_of(case)
    model = model_of(config)
    facts, state = describe(model), model.state_dict()
    family = family_for(facts)
    theirs = family.key_map(facts).to_theirs(state)
    # the model that config.json describes has the same weights and the same class
    described = family.model(family.config(facts, 128))
    linear_bias = {"linear_bias": config.linear_bias}  # some classes always have them
    read = checked_model({**config.to_dict(), "layers": None, **described, **linear_bias})
    again = assemble(read, VOCAB)
    assert describe(again).layers[0].hidden_dim == facts.layers[0].hidden_dim
    assert family.config(describe(again), 128) == family.config(facts, 128)
    back = family_for(describe(again)).key_map(describe(again)).to_ours(theirs)
    again.load_state_dict(back)
    assert all(torch.equal(again.state_dict()[name], state[name]) for name in state)
    tokens_BM = random_tokens(2, 20)
    torch.testing.assert_close(again.eval()(tokens_BM), model(tokens_BM), rtol=0, atol=1e-5)


def test_what_no_class_computes_is_refused_with_the_nearest() -> None:
    for chosen, said in (
        ({"bias": "alibi", "pos": "none", "ffn": "relu2", "norm": "layernorm"}, "MptForCausalLM"),
        ({"pos": "learned", "norm": "rmsnorm", "ffn": "gelu"}, "GPT2LMHeadModel"),
        ({"pos": "none", "norm": "layernorm", "ffn": "swiglu"}, "StableLm|SmolLM3"),
    ):
        facts = describe(assemble(options(dim=32, **chosen).model, VOCAB))
        with pytest.raises(ConfigError, match=rf"the nearest is ({said})[^.]*\(model\.") as error:
            family_for(facts)
        assert "\n" not in str(error.value)
    made = checked_model(
        {
            **options(dim=32, norm="layernorm", ffn="gelu").model.to_dict(),
            "layers": {"pattern": ["a", "b"], "a": {"pos": "rope"}, "b": {"bias": "causal"}},
        }
    )
    facts = describe(assemble(made, VOCAB))
    assert all(family.reasons(facts) for family in families())  # learned positions and rope too
    assert len({family.PRECEDENCE for family in families()}) == len(families())


def test_names_without_the_prefix_of_the_model_are_read(tmp_path: Path) -> None:
    write(tmp_path, model_of(config_of("gpt2")))
    expected = dict(read_folder(tmp_path).weights)
    bare = {name.removeprefix("transformer."): weight for name, weight in expected.items()}
    assert "lm_head.weight" in bare and "h.1.ln_1.bias" in bare
    save_file(bare, tmp_path / "model.safetensors")
    found = read_folder(tmp_path).weights
    assert found.keys() == expected.keys() == found.shapes.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
