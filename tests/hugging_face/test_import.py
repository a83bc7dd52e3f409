"""Folders that transformers itself has written begin a run; hostile ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hugging_face.exports import CASES, config_of, model_of, write
from tests.train.runs import run, small
from xftrain.commands import builder
from xftrain.commands.hub_model import read_hub_model
from xftrain.commands.initial_sizes import differing_keys, without_sizes
from xftrain.commands.prepare import prepare
from xftrain.config.compose import validate_as
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError

transformers = pytest.importorskip("transformers")

GATED = ("model.pos=rope", "model.ffn=swiglu", "model.ffn.hidden_dim=48", "model.norm=rmsnorm")
LLAMA = (*GATED, "model.norm.eps=1e-6", "model.heads=gqa", "model.heads.num_kv_heads=1")
GPT2 = ("model.ffn=gelu", "model.linear_bias=true", "model.tie_embeddings=true")
MPT = ("model.bias=alibi", "model.pos=none", "model.ffn=gelu", "model.ffn.exact=true", GPT2[2])
LLAMA_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CLASSES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "Llama": ("LlamaForCausalLM", LLAMA_SIZES, LLAMA),
    "GPT2": ("GPT2LMHeadModel", {"n_embd": 32, "n_layer": 1, "n_head": 2}, GPT2),
    "Mpt": ("MptForCausalLM", {"d_model": 32, "n_layers": 1, "n_heads": 2}, MPT),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: Any) -> Callable[..., tuple[Path, Any]]:
    """Makes a folder, with the model that wrote it."""

    def make(kind: str, **saving: Any) -> tuple[Path, Any]:
        name, sizes, _ = CLASSES[kind]
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(vocab_size=61, **sizes)
        config.bos_token_id = config.eos_token_id = 0
        model = getattr(transformers, name)(config)
        folder: Path = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder, **saving)
        return folder, model.eval()

    return make


@pytest.mark.parametrize(
    ("kind", "saving"),
    [("Llama", {}), ("Llama", {"max_shard_size": "9KB"}), ("GPT2", {}), ("Mpt", {})],
)
def test_a_folder_of_transformers_begins_a_run(
    kind: str, saving: dict[str, Any], made: Any, tmp_path: Path, caplog: Any
) -> None:
    folder, theirs = made(kind, **saving)
    assert (folder / "model.safetensors.index.json").exists() == bool(saving)
    words = ("callbacks=none", f"init_from={folder}", "data.vocab_size=60", *CLASSES[kind][2])
    checked = validate_as(RunConfig, small(*words))
    found = prepare(checked, checked.to_dict(), tmp_path)
    assert found.vocab_size == 61 and found.initial is not None  # of 60 tokens, and not 64
    ours = builder.assemble(found.cfg.model, found.vocab_size)
    found.initial.load_into(ours)
    tokens_BM = torch.randint(61, (3, 13))
    with torch.no_grad():
        assert (ours(tokens_BM) - theirs(tokens_BM).logits).abs().max() < 1e-5
    assert "not begin with the same function" not in caplog.text
    result = run(tmp_path / "run", *words, "optim.lr=0.01")
    assert result["steps"] == 6 and result["metrics"]["val/loss"] < 4.0


@pytest.mark.parametrize("case", CASES)
def test_what_was_exported_is_read_back_bit_by_bit(case: str, tmp_path: Path) -> None:
    config = config_of(case)
    state = model_of(config).state_dict()
    write(tmp_path, model_of(config))
    hub = read_hub_model(tmp_path, "init_from", linear_bias=config.linear_bias)
    hub.weights.refuse_others()
    assert hub.weights.keys() == state.keys()
    assert all(torch.equal(hub.weights[name], weight) for name, weight in state.items())
    differing = differing_keys(hub.config.to_dict(), replace(config, vocab_size=64).to_dict())
    assert without_sizes(differing) == []
    assert hub.weights.shapes == {name: tuple(weight.shape) for name, weight in state.items()}


def test_a_model_without_biases_is_read_from_a_class_that_has_them_as_zeros(
    made: Any, tmp_path: Path
) -> None:
    folder, _ = made("GPT2")
    words = ("callbacks=none", f"init_from={folder}", "data.vocab_size=60", GPT2[0], GPT2[2])
    assert run(tmp_path / "run", *words)["steps"] == 6
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.ln_1.bias"][3] = 1e-9
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        ConfigError, match="biases that the model has not, .*ln_1.bias: set model.l"
    ):
        run(tmp_path / "other", *words)


def test_a_run_of_such_weights_is_resumed_with_their_vocabulary(made: Any, tmp_path: Path) -> None:
    folder, _ = made("GPT2")
    words = (f"init_from={folder}", "data.vocab_size=60", "callbacks.sample=null", *GPT2)
    run(tmp_path / "run", *words, "max_steps=2")
    shutil.rmtree(folder)
    for more in (words, words[1:]):  # with and without init_from
        result = run(tmp_path / "run", *more, "ckpt=auto", "max_steps=4")
    assert result["steps"] == 4


def test_another_model_is_refused_and_the_log_says_what_matches(
    made: Any, tmp_path: Path, caplog: Any
) -> None:
    folder, _ = made("Llama")
    caplog.set_level("INFO")
    for words, said in (
        (LLAMA[:-1] + ("model.heads.num_kv_heads=2",), r"qkv.weight is \[64, 32\] there and \[96"),
        (("model.dim=64", *LLAMA), "model.dim=32, and this one has 64: set model.dim=32"),
        (("model.vocab_size=640", *LLAMA), "model.vocab_size=61, and this one has 640"),
        (("data.vocab_size=100", *LLAMA), "61, and this one has 128: 100 of them are those of d"),
        (GPT2, "has other weights than this model: "),
    ):
        checked = validate_as(RunConfig, small("callbacks=none", f"init_from={folder}", *words))
        with pytest.raises(ConfigError, match=said):
            prepare(checked, checked.to_dict(), tmp_path)
    assert "model.num_heads=2" not in caplog.text
    assert " model.pos=rope model.pos.base=10000.0 " in caplog.text


def _config(**changes: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return change


def _weights(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def changed(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return changed


NORM = "model.norm.weight"
HOSTILE = {
    "code": (_config(auto_map={"AutoModelForCausalLM": "evil.Model"}), "which is never run"),
    "class": (_config(architectures=["\x1b[2JEvil"]), r"must be a folder of one of .*\\x1b"),
    "no class": (_config(architectures=None), "must be a folder of one of"),
    "layers": (_config(num_hidden_layers=2**30), "is said to have 1,073,741,824 layers"),
    "width": (_config(hidden_size=2**30, head_dim=2**29), "cannot be built|weights of other"),
    "overflow": (
        _config(hidden_size=2**30, head_dim=2**29, vocab_size=2**30),
        "cannot be built|weights of other",
    ),
    "NaN": (_config(rms_norm_eps=float("nan")), "rms_norm_eps = nan, and it must be a positive"),
    "text": (_config(hidden_size="32"), "hidden_size = '32', and it must be a positive integer"),
    "flag": (_config(vocab_size=True), "vocab_size = True, and it must be a positive integer"),
    "heads": (_config(num_attention_heads=5), "config.json"),
    "groups": (_config(num_key_value_heads=3), "config.json"),
    "missing": (_weights(lambda w: w.pop(NORM)), "1 missing .model.norm.weight"),
    "unexpected": (_weights(lambda w: w.update(evil=torch.ones(1))), "1 unexpected .evil"),
    "shape": (
        _weights(lambda w: w.update({NORM: torch.ones(31)})),
        r"norm.weight is \[31\], and m",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("key", ["init_from", "ckpt"])
def test_a_hostile_folder_is_one_sentence(case: str, key: str, made: Any, tmp_path: Path) -> None:
    change, said = HOSTILE[case]
    folder = shutil.copytree(made("Llama")[0], tmp_path / "folder")
    change(folder)
    with pytest.raises(ConfigError, match=said) as error:
        read_hub_model(folder, key)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700
    assert str(error.value).startswith(f"{key}={folder}")  # as the user named the folder
