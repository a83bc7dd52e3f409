"""Compares the speed of generation with `generate` of `transformers`, on the same weights.

Both continue the same random prompts greedily in bfloat16, in turn, in one process: xftrain with
its CUDA graph, `transformers` with its static cache, which it compiles on a GPU. The tokens/s are
of the whole call, the prompts included, after a call of each that is not counted. In float32, both
must choose the same tokens.

    python scripts/compare_generation.py                      # GPT-2 124M on a GPU
    python scripts/compare_generation.py --tiny --device cpu  # shows that it works
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xftrain import compose  # noqa: E402
from xftrain.commands.builder import assemble  # noqa: E402
from xftrain.config.compose import validate_as  # noqa: E402
from xftrain.config.run_config import RunConfig  # noqa: E402
from xftrain.generation.generate import Generated, generate_texts  # noqa: E402
from xftrain.generation.sampling import Sampling  # noqa: E402
from xftrain.hugging_face.facts import describe  # noqa: E402
from xftrain.hugging_face.families import gpt2  # noqa: E402
from xftrain.model.gpt import GPT  # noqa: E402
from xftrain.utils.markdown import table  # noqa: E402

_COMPARED = 64  # tokens that must be the same in float32


def build(words: list[str], num_positions: int) -> GPT:
    """GPT-2 with enough positions."""
    words = [*words, f"model.pos.max_positions={num_positions}"]
    config = validate_as(RunConfig, compose(*words, f"seq={num_positions}"))
    torch.manual_seed(0)
    return assemble(config.model, config.model.vocab_size or 0).eval()


def theirs(model: GPT) -> Any:
    """The same weights in the class of `transformers`."""
    import transformers

    facts = describe(model)
    config = transformers.GPT2Config(**gpt2.config(facts, 0))
    made = transformers.GPT2LMHeadModel(config).eval()
    found = made.load_state_dict(gpt2.key_map(facts).to_theirs(model.state_dict()), strict=False)
    assert set(found.missing_keys) <= {"lm_head.weight"} and not found.unexpected_keys
    made.tie_weights()
    return made


def ours(model: GPT, prompts_BM: torch.Tensor, num_tokens: int) -> Generated:
    """Continues the prompts greedily."""
    sampling = Sampling(temperature=0)
    size = model.vocab_size
    return generate_texts(
        model, prompts_BM.tolist(), num_tokens, vocab_size=size, sampling=sampling
    )


def generated(model: Any, prompts_BM: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """What `transformers` adds to the prompts, [B, N]."""
    made: torch.Tensor = model.generate(
        prompts_BM,
        attention_mask=torch.ones_like(prompts_BM),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        cache_implementation="static",
        pad_token_id=0,
        eos_token_id=None,
    )
    return made[:, prompts_BM.shape[1] :]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, until the device is done."""
    begin = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", default="16,1", help="numbers of prompts")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=1024, help="tokens to add")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 layers, width 32")
    options = parser.parse_args()
    device = torch.device(options.device)
    words = ["model=gpt_124m", "model.vocab_size=50304"]
    if options.tiny:
        words = ["model=gpt_124m", "model.vocab_size=64", "model.dim=32"]
        words += ["model.num_layers=2", "model.num_heads=4"]
    model = build(words, options.prompt + options.new)
    model, peer = model.to(device), theirs(model).to(device)
    is_same = compare_tokens(model, peer, options.prompt, device)
    model, peer = model.bfloat16(), peer.bfloat16()
    rows = []
    for size in map(int, options.batches.split(",")):
        prompts_BM = torch.randint(model.vocab_size, (size, options.prompt), device=device)
        rows.append(measure(model, peer, prompts_BM, options.new, options.rounds))
    titles = ["prompts", "xftrain tokens/s", "transformers tokens/s", "ratio"]
    print(table([*titles, "first token ms", "cache MiB", "CUDA graph"], rows))
    print(
        f"the first {_COMPARED} tokens in float32 are {'the same' if is_same else 'NOT the same'}"
    )
    return 0 if is_same else 1


def compare_tokens(model: GPT, peer: Any, num_prompt: int, device: torch.device) -> bool:
    """Whether both choose the same tokens in float32."""
    prompts_BM = torch.randint(model.vocab_size, (4, num_prompt), device=device)
    made = ours(model, prompts_BM, _COMPARED)
    found = [one.tokens for one in made.continuations]
    return found == generated(peer, prompts_BM, _COMPARED).tolist()


def measure(
    model: GPT, peer: Any, prompts_BM: torch.Tensor, num_tokens: int, rounds: int
) -> list[str]:
    """A row of the table: medians of some rounds, in which both are measured in turn."""
    device, made = prompts_BM.device, []
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        mine = seconds(lambda: made.append(ours(model, prompts_BM, num_tokens)), device)
        other = seconds(lambda: generated(peer, prompts_BM, num_tokens), device)
        if number:  # the first one compiles
            taken[0].append(mine)
            taken[1].append(other)
    total = prompts_BM.shape[0] * num_tokens
    speeds = [total / statistics.median(times) for times in taken]
    return [
        str(prompts_BM.shape[0]),
        f"{speeds[0]:,.0f}",
        f"{speeds[1]:,.0f}",
        f"{speeds[0] / speeds[1]:.2f}",
        f"{1e3 * made[-1].first_token_s:.1f}",
        f"{made[-1].cache_bytes / 2**20:.1f}",
        "yes" if made[-1].uses_graph else "no",
    ]


if __name__ == "__main__":
    sys.exit(main())
