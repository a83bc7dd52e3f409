"""Qwen3 and StableLM: what a `config.json` of transformers describes, and what is refused in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.models import random_tokens
from xftrain.commands.builder import assemble
from xftrain.config.compose import checked_model
from xftrain.errors import ConfigError
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.families import qwen3, stablelm
from xftrain.hugging_face.folder import read_folder

SIZES: dict[str, Any] = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
HEADS = {**SIZES, "head_dim": 8}
LOCAL, FAR = "sliding_attention", "full_attention"
WINDOW = {"use_sliding_window": True, "sliding_window": 5}


@pytest.mark.parametrize(
    ("family", "kind", "keys", "windows"),
    [
        (qwen3, "Qwen3", {}, [None, None]),
        (qwen3, "Qwen3", {**WINDOW, "max_window_layers": 0}, [5, 5]),
        (qwen3, "Qwen3", {**WINDOW, "max_window_layers": 1}, [None, 5]),
        (qwen3, "Qwen3", {**WINDOW, "layer_types": [LOCAL, FAR]}, [5, None]),
        (stablelm, "StableLm", {}, [None, None]),
        (stablelm, "StableLm", {"partial_rotary_factor": 0.5}, [None, None]),
    ],
)
def test_a_model_of_transformers_is_read(tmp_path: Path, family, kind, keys, windows) -> None:
    torch.manual_seed(0)
    sizes = HEADS if family is qwen3 else SIZES
    config = getattr(transformers, f"{kind}Config")(**sizes, **keys)
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            if weight.ndim > 1:
                weight *= 5
    theirs.save_pretrained(tmp_path)
    folder = read_folder(tmp_path)
    node = {"layers": None, **family.model(folder.config)}
    model = assemble(checked_model({"dropout": 0.0, **node}), 64).eval()
    facts = describe(model)
    assert [layer.bias.window for layer in facts.layers] == windows
    assert family.reasons(facts) == []
    model.load_state_dict(family.key_map(facts).to_ours(dict(folder.weights)))
    tokens_BM = random_tokens(1, 12)
    with torch.no_grad():
        assert torch.allclose(model(tokens_BM), theirs(tokens_BM).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "keys", "said"),
    [
        (qwen3, {"attention_bias": True}, "attention_bias = True"),
        (qwen3, {"layer_types": [LOCAL]}, r"layer_types = \['sliding_attention'\], and it must"),
        (qwen3, {"layer_types": [LOCAL, "chunked"]}, "layer_types = .*chunked"),
        (qwen3, {**WINDOW, "max_window_layers": -1}, "max_window_layers = -1"),
        (qwen3, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        (stablelm, {"qk_layernorm": True}, "qk_layernorm = True"),
        (stablelm, {"use_parallel_residual": True}, "use_parallel_residual = True"),
        (stablelm, {"partial_rotary_factor": "half"}, "partial_rotary_factor = 'half'"),
    ],
)
def test_what_no_option_computes_is_refused(family, keys, said) -> None:
    sizes = HEADS if family is qwen3 else SIZES
    with pytest.raises(ConfigError, match=said):
        family.model({**sizes, **keys})


def test_the_width_of_heads_that_the_file_leaves_out_is_that_of_the_class() -> None:
    with pytest.raises(ConfigError, match="head_dim = 128"):
        qwen3.model(SIZES)  # of Qwen3, 128 whatever the other sizes are
