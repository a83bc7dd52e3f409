"""`GPT2LMHeadModel` (Radford et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xftrain.hugging_face import values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap, Rule

ARCHITECTURE, PRECEDENCE = "GPT2LMHeadModel", 3
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = facts.reasons_of_extras()
    if facts.norm != "layernorm":
        found.append("has LayerNorm (model.norm=layernorm)")
    if facts.learned_positions is None or any(o.rope_base is not None for o in facts.layers):
        found.append("has learned positions (model.pos=learned)")
    if any(one.activation not in _ACTIVATIONS or one.is_gated for one in facts.layers):
        found.append("has a feed-forward without a gate (model.ffn=gelu or relu2)")
    if any(one.num_kv_heads != facts.num_heads for one in facts.layers):
        found.append("has a key and value for each query head (model.heads=mha)")
    changes = {
        value
        for one in facts.layers
        for value in (one.bias.window, one.bias.slopes, one.bias.scale, one.bias.softcap)
    }
    if changes != {None}:
        found.append("has plain causal attention (model.bias=causal)")
    if len({(one.hidden_dim, one.activation) for one in facts.layers}) > 1:
        found.append("has the same feed-forward in all layers")
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    return {
        "model_type": "gpt2",
        "vocab_size": facts.vocab_size,
        "n_positions": facts.learned_positions,
        "n_embd": facts.dim,
        "n_layer": len(facts.layers),
        "n_head": facts.num_heads,
        "n_inner": facts.layers[0].hidden_dim,
        "activation_function": _ACTIVATIONS[facts.layers[0].activation],
        "layer_norm_epsilon": facts.eps,
        "tie_word_embeddings": facts.is_tied,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model; it always has biases, which may be 0."""
    rules = [
        Rule("embed.weight", ("transformer.wte.weight",)),
        Rule("pos.table.weight", ("transformer.wpe.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
        Rule("norm.weight", ("transformer.ln_f.weight",)),
    ]
    biases = {"norm.bias": ("transformer.ln_f.bias", facts.dim)}
    for index, layer in enumerate(facts.layers):
        ours, theirs = f"blocks.{index}", f"transformer.h.{index}"
        matrices = (
            ("heads.qkv", "attn.c_attn", 3 * facts.dim),
            ("out", "attn.c_proj", facts.dim),
            ("ffn.up", "mlp.c_fc", layer.hidden_dim),
            ("ffn.down", "mlp.c_proj", facts.dim),
        )
        for our, their, size in matrices:
            name = (f"{theirs}.{their}.weight",)
            rules.append(Rule(f"{ours}.{our}.weight", name, is_transposed=True))
            biases[f"{ours}.{our}.bias"] = (f"{theirs}.{their}.bias", size)
        for our, their in (("norm_attn", "ln_1"), ("norm_ffn", "ln_2")):
            rules.append(Rule(f"{ours}.{our}.weight", (f"{theirs}.{their}.weight",)))
            biases[f"{ours}.{our}.bias"] = (f"{theirs}.{their}.bias", facts.dim)
    if facts.has_biases:
        rules += [Rule(our, (their,)) for our, (their, _) in biases.items()]
        biases = {}
    tied = {"lm_head.weight": "transformer.wte.weight"} if facts.is_tied else None
    zeros = {their: (size,) for their, size in biases.values()}
    return KeyMap(tuple(rules), zeros, (".attn.bias", ".attn.masked_bias"), tied)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    values.expect(config, "scale_attn_weights", True)
    values.expect(config, "scale_attn_by_inverse_layer_idx", False)
    values.expect(config, "add_cross_attention", False)
    dim = values.integer(config, "n_embd", 768)
    return {
        "dim": dim,
        "num_layers": values.integer(config, "n_layer", 12),
        "num_heads": values.integer(config, "n_head", 12),
        "vocab_size": values.integer(config, "vocab_size", 50257),
        "tie_embeddings": values.flag(config, "tie_word_embeddings", True),
        "linear_bias": True,
        "attn": {"name": "auto"},
        "bias": {"name": "causal"},
        "pos": {"name": "learned", "max_positions": values.integer(config, "n_positions", 1024)},
        "heads": {"name": "mha"},
        "ffn": {
            **values.plain_ffn(config, "activation_function", "gelu_new"),
            "hidden_dim": values.integer(config, "n_inner", 4 * dim),
        },
        "norm": {"name": "layernorm", "eps": values.number(config, "layer_norm_epsilon", 1e-5)},
    }
