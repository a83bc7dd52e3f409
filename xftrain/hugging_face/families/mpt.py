"""`MptForCausalLM`, with ALiBi (MosaicML, 2023, https://www.databricks.com/blog/mpt-7b)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xftrain.hugging_face import values
from xftrain.hugging_face.facts import Facts
from xftrain.hugging_face.key_map import KeyMap, Rule

ARCHITECTURE, PRECEDENCE = "MptForCausalLM", 4

_LENGTH = 8192  # the class refuses longer texts, and ALiBi has no limit


def _slopes(num_heads: int) -> list[float]:
    """The slopes of the class, which has them in another order if H is no power of two."""
    size = 2 ** math.ceil(math.log2(num_heads))
    all_slopes = [2.0 ** (-8.0 * (head + 1) / size) for head in range(size)]
    ordered = all_slopes if size == num_heads else all_slopes[1::2] + all_slopes[::2]
    return ordered[:num_heads]


def reasons(facts: Facts) -> list[str]:
    """Reasons why the class cannot express a model."""
    found = facts.reasons_of_extras()
    if facts.norm != "layernorm":
        found.append("has LayerNorm (model.norm=layernorm)")
    if facts.learned_positions is not None or any(o.rope_base is not None for o in facts.layers):
        found.append("has no positions but ALiBi (model.pos=none)")
    if any(one.activation != "gelu" or one.is_gated for one in facts.layers):
        found.append("has GELU in its exact form (model.ffn=gelu model.ffn.exact=true)")
    if any(one.hidden_dim != 4 * facts.dim for one in facts.layers):
        found.append("has a feed-forward of width 4 x dim (model.ffn.hidden_dim=null)")
    if any(one.num_kv_heads != facts.num_heads for one in facts.layers):
        found.append("has a key and value for each query head (model.heads=mha)")
    if facts.has_biases:
        found.append("has no biases (model.linear_bias=false)")
    for one in facts.layers:
        bias = one.bias
        is_alibi = bias.slopes is not None and all(
            math.isclose(a, b) for a, b in zip(bias.slopes, _slopes(facts.num_heads), strict=True)
        )
        if not is_alibi or bias.window is not None or bias.softcap or bias.scale:
            found.append("has ALiBi without a window (model.bias=alibi)")
            break
    return found


def config(facts: Facts, max_positions: int) -> dict[str, Any]:
    """The class's own keys of `config.json`."""
    return {
        "model_type": "mpt",
        "vocab_size": facts.vocab_size,
        "d_model": facts.dim,
        "n_layers": len(facts.layers),
        "n_heads": facts.num_heads,
        "expansion_ratio": 4,
        "max_seq_len": max(max_positions, _LENGTH),
        "layer_norm_epsilon": facts.eps,
        "learned_pos_emb": False,
        "no_bias": True,
        "tie_word_embeddings": facts.is_tied,
        "use_cache": True,
        "attn_config": {"model_type": "", "alibi": True, "alibi_bias_max": 8},
    }


def key_map(facts: Facts) -> KeyMap:
    """Where the class has the weights of a model."""
    rules = [
        Rule("embed.weight", ("transformer.wte.weight",)),
        Rule("head.weight", ("lm_head.weight",)),
        Rule("norm.weight", ("transformer.norm_f.weight",)),
    ]
    names = {
        "norm_attn": "norm_1",
        "heads.qkv": "attn.Wqkv",
        "out": "attn.out_proj",
        "norm_ffn": "norm_2",
        "ffn.up": "ffn.up_proj",
        "ffn.down": "ffn.down_proj",
    }
    for index in range(len(facts.layers)):
        rules += [
            Rule(f"blocks.{index}.{our}.weight", (f"transformer.blocks.{index}.{their}.weight",))
            for our, their in names.items()
        ]
    tied = {"lm_head.weight": "transformer.wte.weight"} if facts.is_tied else None
    return KeyMap(tuple(rules), {}, (), tied)


def model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` node of the model that a `config.json` describes."""
    attention = config.get("attn_config") or {}
    if not isinstance(attention, Mapping):
        raise values.wrong("attn_config", "it must be a mapping", attention)
    for key, allowed in (
        ("alibi", (True,)),
        ("alibi_bias_max", (8, 8.0)),
        ("clip_qkv", (None,)),
        ("softmax_scale", (None,)),
        ("prefix_lm", (False,)),
        ("qk_ln", (False,)),
    ):
        values.expect(attention, key, *allowed)
    values.expect(config, "expansion_ratio", 4)
    values.expect(config, "logit_scale", None)
    values.expect(config, "no_bias", True)
    return {
        "dim": values.integer(config, "d_model", 2048),
        "num_layers": values.integer(config, "n_layers", 24),
        "num_heads": values.integer(config, "n_heads", 16),
        "vocab_size": values.integer(config, "vocab_size", 50368),
        "tie_embeddings": values.flag(config, "tie_word_embeddings", True),
        "linear_bias": False,
        "attn": {"name": "auto"},
        "bias": {"name": "alibi"},
        "pos": {"name": "none"},
        "heads": {"name": "mha"},
        "ffn": {"name": "gelu", "exact": True},
        "norm": {"name": "layernorm", "eps": values.number(config, "layer_norm_epsilon", 1e-5)},
    }
