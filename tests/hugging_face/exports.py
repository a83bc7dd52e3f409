"""Small models of every class of transformers, random or briefly trained, and their folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional as F

from tests.models import VOCAB, options, random_tokens
from xftrain.commands.builder import assemble
from xftrain.config.layer_pattern import checked_layers
from xftrain.config.option_checks import checked_option
from xftrain.config.run_config import ModelConfig
from xftrain.hugging_face.config_json import config_json
from xftrain.hugging_face.facts import describe
from xftrain.hugging_face.family import family_for
from xftrain.model.gpt import GPT

WINDOW = {"name": "window", "window": 7}
EXACT = {"name": "gelu", "exact": True}
ROPE: dict[str, Any] = {"pos": "rope", "norm": "rmsnorm", "ffn": "swiglu", "heads": "gqa"}
GPT2: dict[str, Any] = {"norm": "layernorm", "ffn": "gelu"}
MPT: dict[str, Any] = {"norm": "layernorm", "ffn": EXACT, "bias": "alibi", "pos": "none"}
CODER: dict[str, Any] = {**ROPE, "norm": "layernorm", "ffn": "gelu"}
# The beginning of the class's name, and the keys of `model`.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", ROPE),
    "llama_geglu_biases": ("Llama", {**ROPE, "heads": "mqa", "ffn": "geglu", "linear_bias": True}),
    "llama_tied": ("Llama", {**ROPE, "heads": "mha", "tie_embeddings": True}),
    "mistral": ("Mistral", {**ROPE, "bias": "windowed"}),
    "smollm3": ("SmolLM3", {**ROPE, "pattern": {"pos": "none"}}),
    "qwen3": ("Qwen3", {**ROPE, "qk_norm": True}),
    "qwen3_windows": ("Qwen3", {**ROPE, "qk_norm": True, "pattern": {"pos": "rope"}}),
    "gpt2": ("GPT2", {**GPT2, "linear_bias": True}),
    "gpt2_relu2": ("GPT2", {**GPT2, "ffn": "relu2", "tie_embeddings": True}),
    "mpt": ("Mpt", {**MPT, "tie_embeddings": True}),
    "mpt_six_heads": ("Mpt", {**MPT, "dim": 48, "num_heads": 6}),
    "starcoder2": ("Starcoder2", {**CODER, "bias": "windowed", "ffn": "relu2"}),
    "stablelm": ("StableLm", {**ROPE, "norm": "layernorm", "tie_embeddings": True}),
    "stablelm_half": ("StableLm", {**ROPE, "norm": "layernorm", "fraction": 0.5}),
    "starcoder2_biases": ("Starcoder2", {**CODER, "linear_bias": True}),
}


def config_of(case: str) -> ModelConfig:
    chosen = {"dim": 32, **CASES[case][1]}
    far, is_windowed = chosen.pop("pattern", None), chosen.get("bias") == "windowed"
    fraction = chosen.pop("fraction", None)
    made = options(**{**chosen, "bias": "causal"} if is_windowed else chosen).model
    if fraction is not None:
        return replace(made, pos=made.pos.with_options(fraction=fraction))
    if is_windowed:
        return replace(made, bias=checked_option("model.bias", WINDOW))
    if far is not None:
        own = {part: getattr(made, part) for part in ("bias", "pos", "heads", "ffn")}
        node = {"pattern": ["local", "far"], "local": {"bias": WINDOW}, "far": far}
        return replace(made, layers=checked_layers(node, own, made.num_layers))
    return made


def model_of(config: ModelConfig, *, num_steps: int = 0) -> GPT:
    """A model whose norms and biases are random too, trained for a number of steps."""
    torch.manual_seed(1)
    model = assemble(config, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(num_steps):
        tokens_BM = random_tokens(4, 33, seed=step)
        logits = model(tokens_BM[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens_BM[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def write(folder: Path, model: GPT) -> None:
    """The model's `config.json` and weights, without a tokenizer."""
    facts = describe(model)
    family = family_for(facts)
    folder.mkdir(parents=True, exist_ok=True)
    content = config_json(family, facts, max_positions=128, end_id=None, dtype=torch.float32)
    (folder / "config.json").write_text(json.dumps(content))
    theirs = family.key_map(facts).to_theirs(model.state_dict())
    weights = {name: weight.clone() for name, weight in theirs.items()}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
