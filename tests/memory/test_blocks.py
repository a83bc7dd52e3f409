"""What a block is predicted to keep for its backward pass, against what autograd keeps."""

from __future__ import annotations

import pytest
import torch

from tests.memory.measured import (
    CPU,
    VARIANTS,
    batch_of,
    check_block,
    kept_by_block,
)
from tests.models import gpt
from xftrain.config import registry
from xftrain.memory.layers import run_layers


@pytest.mark.parametrize("is_mixed", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize("chosen", VARIANTS, ids=str)
def test_a_block_keeps_what_is_predicted(chosen, is_mixed):
    check_block(chosen, is_mixed, compiled=False, rel=0.02)


@pytest.mark.parametrize("is_mixed", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "chosen",
    [
        {"ffn": "gelu"},
        {"residual_dtype": "float32"},
        {"ffn": "swiglu", "norm": "rmsnorm", "heads": "gqa", "pos": "rope"},
        {"attn": "naive"},
        {"qk_norm": True, "heads": "gqa", "pos": "rope"},
    ],
    ids=str,
)
def test_a_compiled_block_keeps_what_is_predicted(chosen, is_mixed):
    check_block(chosen, is_mixed, compiled=True, rel=0.03)


def check_ffn(ffn: str, is_mixed: bool) -> None:
    chosen, dtype = {"attn": "sdpa", "ffn": ffn}, torch.bfloat16 if is_mixed else torch.float32
    layers = run_layers(gpt(**chosen), batch_of(), dtype, CPU, is_mixed=is_mixed, is_compiled=True)
    whole, less = (
        kept_by_block(chosen, is_mixed, compiled=True, recomputes_ffn=recomputes)[0]
        for recomputes in (False, True)
    )
    assert layers.blocks[0].ffn == pytest.approx(whole - less, rel=0.03)
    assert less < 0.6 * whole


@pytest.mark.parametrize("is_mixed", [False, True], ids=["32-true", "bf16-mixed"])
@pytest.mark.parametrize("ffn", registry.option_names("model/ffn"))
def test_a_compiled_block_that_recomputes_its_ffn_keeps_so_much_less(ffn, is_mixed):
    check_ffn(ffn, is_mixed)


@pytest.mark.parametrize("ffn", ["gelu", "swiglu", "geglu"])
def test_products_that_are_chosen_keep_what_is_predicted(monkeypatch, ffn):
    for place in (
        "model.linear.should_autotune",
        "model.ffn.gelu.should_autotune",
        "model.ffn._feedforward.should_fuse_gate",
    ):
        monkeypatch.setattr(f"xftrain.{place}", lambda *_: True)
    check_block({"ffn": ffn}, True, compiled=False, rel=0.02)
    check_block({"ffn": ffn}, True, compiled=True, rel=0.03)
    check_ffn(ffn, True)
