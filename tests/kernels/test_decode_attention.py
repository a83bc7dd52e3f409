"""Attention of one token over a cache is attention over all positions, also in the ring."""

from __future__ import annotations

import pytest
import torch

from xftrain.interfaces import AttnBias
from xftrain.kernels import decode_attention as module
from xftrain.kernels.decode_attention import decode_attention


def meant(q_HK, k_MGK, v_MGK, bias):
    """The last position's attention, by the definition of a bias."""
    num_positions = k_MGK.shape[0]
    group = q_HK.shape[0] // k_MGK.shape[1]
    k_MHK, v_MHK = (x.repeat_interleave(group, dim=1) for x in (k_MGK, v_MGK))
    scores_HM = bias.scores(torch.einsum("hk,mhk->hm", q_HK, k_MHK), q_HK.shape[-1])
    added = bias.materialize(num_positions, q_HK.device, first_query=num_positions - 1)[:, 0]
    return torch.einsum("hm,mhk->hk", (scores_HM + added).softmax(-1), v_MHK)


def differences(bias, *, H, G, K, lengths, capacity, dtype, device):
    """The largest difference from the definition, for rows of these lengths in one call."""
    torch.manual_seed(0)
    num_slots = min(capacity, bias.window or capacity)
    q_BHK = 2 * torch.randn(len(lengths), H, K, device=device, dtype=dtype)
    caches = torch.randn(2, len(lengths), num_slots, G, K, device=device, dtype=dtype)
    new = torch.empty(2, len(lengths), G, K, device=device, dtype=dtype)
    want = []
    for row, length in enumerate(lengths):
        kv = torch.randn(2, length, G, K, device=device, dtype=dtype)
        first = max(0, length - num_slots)
        slots = torch.arange(first, length, device=device) % num_slots
        caches[:, row, slots] = kv[:, first:]
        caches[:, row, slots[-1]] = torch.nan  # is replaced by the new key and value
        new[:, row] = kv[:, -1]
        want.append(meant(q_BHK[row].double(), *kv.double(), bias))
    slopes = bias.slopes and torch.tensor(bias.slopes, device=device)
    positions_B = torch.tensor(lengths, device=device) - 1
    scale = K**-0.5 if bias.scale is None else bias.scale
    out = decode_attention(
        q_BHK, *new, *caches, positions_B, slopes, scale=scale, softcap=bias.softcap
    )
    assert not caches.isnan().any()
    return float((out.double() - torch.stack(want)).abs().max())


BIASES = {
    "causal": AttnBias(),
    "window": AttnBias(window=37),
    "alibi": AttnBias(slopes=(0.5, 0.25, 0.125, 0.0625)),
    "all": AttnBias(window=70, slopes=(0.5, 0.25, 0.125, 0.0625), scale=0.4, softcap=3.0),
}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("G", [1, 2, 4])
def test_a_step_is_the_last_row_of_attention(bias, G):
    sizes = {"H": 4, "G": G, "K": 16, "lengths": (1, 36, 37, 38, 150), "capacity": 160}
    assert differences(BIASES[bias], **sizes, dtype=torch.float64, device="cpu") < 1e-6


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize(("H", "G", "K"), [(4, 4, 64), (4, 2, 128), (4, 1, 80), (4, 1, 8)])
def test_the_kernel_agrees_with_the_definition(bias, H, G, K, dtype):
    sizes = {"H": H, "G": G, "K": K, "lengths": (1, 36, 37, 38, 150, 2000), "capacity": 2048}
    limit = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    assert module.has_kernel(torch.device("cuda"), dtype)
    assert differences(BIASES[bias], **sizes, dtype=dtype, device="cuda") < limit
