"""The steps of Muon, compared with torch's, in batches and one by one, on one rank and on two."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.waits import waits_refused
from xftrain.kernels import batched_muon
from xftrain.kernels.batched_muon import BatchedMuon, Ranks

SHAPES = [(6, 6), (4, 9), (9, 4), (6, 6), (9, 4), (1, 5)]
LR, DECAY = 0.05, 0.1


def weights(shapes=SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def muon(parameters: list[nn.Parameter], rows: Any = None, **settings: Any) -> BatchedMuon:
    group = {"params": parameters, "stacked_rows": rows}
    return BatchedMuon([group], lr=LR, weight_decay=DECAY, **settings)


def take_steps(optimizer: torch.optim.Optimizer, number: int = 4, first: int = 0) -> list[Tensor]:
    """Steps with gradients that depend on the step alone; the weights after the last."""
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    for step in range(first, first + number):
        generator = torch.Generator().manual_seed(step)
        for weight in parameters:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()
    return [weight.detach().clone() for weight in parameters]


def close(one: list[Tensor], two: list[Tensor], tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(a, b, atol=tolerance) for a, b in zip(one, two, strict=True))


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_steps_are_those_of_torch(nesterov, monkeypatch):
    settings = {"lr": LR, "weight_decay": DECAY, "momentum": 0.9, "nesterov": nesterov}
    theirs = take_steps(
        torch.optim.Muon(weights(), adjust_lr_fn="match_rms_adamw", **settings), number=3
    )
    # torch's matmuls are in bfloat16
    monkeypatch.setattr(batched_muon, "_matmul_dtype", lambda weight: torch.bfloat16)
    ours = take_steps(muon(weights(), momentum=0.9, nesterov=nesterov), number=3)
    moved = max((a - b).abs().max() for a, b in zip(weights(), ours, strict=True))
    assert moved > 0.05  # ten times the tolerance
    assert close(ours, theirs, tolerance=5e-3)


def test_a_batch_is_its_matrices_one_by_one():
    together = take_steps(muon(weights()), number=1)
    for index, shape in enumerate(SHAPES):
        alone = weights()[index]
        generator = torch.Generator().manual_seed(0)
        grads = [torch.randn(other, generator=generator) for other in SHAPES]
        alone.grad = grads[index]
        muon([alone]).step()
        assert torch.allclose(alone, together[index], atol=1e-6), shape


def test_a_batch_has_a_limit(monkeypatch):
    whole = take_steps(muon(weights()))
    monkeypatch.setattr(batched_muon, "_BATCH_ELEMENTS", 40)  # one matrix of each shape
    sizes = []
    monkeypatch.setattr(
        batched_muon,
        "orthogonalize",
        lambda x, *rest, wrapped=batched_muon.orthogonalize: (
            sizes.append(len(x)) or wrapped(x, *rest)
        ),
    )
    assert close(take_steps(muon(weights())), whole)
    assert set(sizes) == {1}


def test_stacked_matrices_are_stepped_as_matrices_of_their_own():
    stacked, parts = weights([(10, 6)]), [(4, 6), (6, 6)]
    first, second = (nn.Parameter(x.clone()) for x in stacked[0].detach().split([4, 6]))
    optimizer, apart = muon(stacked, rows=[(4, 6)]), muon([first, second])
    for step in range(3):
        torch.manual_seed(step)
        stacked[0].grad = torch.randn(10, 6)
        first.grad, second.grad = stacked[0].grad.clone().split([4, 6])
        optimizer.step()
        apart.step()
    assert torch.allclose(stacked[0], torch.cat([first, second]), atol=1e-6)
    assert [tuple(x.shape) for x in (first, second)] == parts
    whole = weights([(10, 6)])
    whole[0].grad = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    muon(whole).step()
    one = weights([(10, 6)])
    one[0].grad = whole[0].grad.clone()
    muon(one, rows=[(4, 6)]).step()
    assert not torch.allclose(whole[0], one[0], atol=1e-3)


def test_an_update_has_the_size_that_the_setting_says():
    parameter = nn.Parameter(torch.zeros(32, 64))
    parameter.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    BatchedMuon([{"params": [parameter]}], lr=0.5, update_rms=0.3).step()
    found = float(parameter.detach().square().mean().sqrt())
    assert found == pytest.approx(0.15, rel=0.2)  # singular values are only near 1


@pytest.mark.parametrize("step", [0, 2])
def test_a_skipped_step_changes_neither_weights_nor_momenta(step):
    optimizer, plain = muon(weights()), muon(weights())
    before = take_steps(optimizer, step), take_steps(plain, step)
    momenta = [s["momentum_buffer"].clone() for s in optimizer.state.values()]
    for weight in optimizer.param_groups[0]["params"]:
        weight.grad = torch.full_like(weight, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    parameters = optimizer.param_groups[0]["params"]
    assert same(before[0], [weight.detach() for weight in parameters])
    if step:
        assert same(momenta, [s["momentum_buffer"] for s in optimizer.state.values()])
    optimizer.found_inf = torch.zeros(())  # and the steps after it are those without it
    assert same(take_steps(optimizer, 2, first=step), take_steps(plain, 2, first=step))


def test_a_learning_rate_on_the_device_is_that_on_the_host():
    tensor = muon(weights())
    rounded = float(torch.tensor(LR))
    tensor.param_groups[0]["lr"] = torch.tensor(LR)
    number = muon(weights())
    number.param_groups[0]["lr"] = rounded
    assert same(take_steps(tensor), take_steps(number))


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_a_restored_state_steps_on_bitwise(way):
    optimizer = muon(weights())
    take_steps(optimizer, 2)
    if way == "deepcopy":
        restored = copy.deepcopy(optimizer)
    else:
        restored = muon(
            [nn.Parameter(w.detach().clone()) for w in optimizer.param_groups[0]["params"]]
        )
        restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    state = restored.state_dict()["state"]
    assert {key for held in state.values() for key in held} == {"momentum_buffer"}
    assert same(take_steps(optimizer, 2, first=2), take_steps(restored, 2, first=2))


def test_a_weight_without_a_gradient_is_left():
    parameters = weights()
    parameters[0].grad = torch.ones(6, 6)
    before = [weight.detach().clone() for weight in parameters]
    optimizer = muon(parameters)
    optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(parameters, before, strict=True)]
    assert changed == [True] + [False] * 5 and len(optimizer.state) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_other_dtypes_keep_theirs(dtype):
    reference = take_steps(muon(weights()))
    found = take_steps(muon(weights(dtype=dtype)))
    assert all(weight.dtype == dtype for weight in found)
    tolerance = 0.06 if dtype == torch.bfloat16 else 1e-4
    assert close([weight.float() for weight in found], reference, tolerance)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_matrices_and_keep_equal_weights(world_size, monkeypatch):
    """Each rank is a thread; 3 ranks cannot share two matrices of a shape evenly."""
    counts = [0] * world_size
    shares: list[Any] = [None] * world_size
    barrier = threading.Barrier(world_size, timeout=20)
    results: list[Any] = [None] * world_size

    def train(rank: int) -> None:
        def all_gather(own: Tensor) -> Tensor:
            counts[rank] += 1
            shares[rank] = own
            barrier.wait()
            gathered = torch.cat(shares)
            barrier.wait()
            return gathered

        parameters = weights_of_ranks[rank]
        results[rank] = take_steps(muon(parameters, ranks=Ranks(rank, world_size, all_gather)))

    orthogonalized = []
    wrapped = batched_muon.orthogonalize
    monkeypatch.setattr(
        batched_muon,
        "orthogonalize",
        lambda x, *rest: orthogonalized.append(len(x)) or wrapped(x, *rest),
    )
    weights_of_ranks = [weights() for _ in range(world_size)]
    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(orthogonalized) == 4 * len(SHAPES)  # each matrix once in each step
    assert set(counts) == {4 * 3}  # batches: (6, 6), (4, 9) with (9, 4), (1, 5)
    assert all(same(results[0], other) for other in results[1:])
    assert close(results[0], take_steps(muon(weights())))


def test_the_updates_of_all_ranks_are_not_widened_at_once():
    """With 8 ranks of 2**26 elements each, they were 2 GiB in float32, and 2 GiB more scaled."""
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.dtype == torch.bfloat16:
                sizes.append(made.numel())
            return made

    optimizer = muon(
        weights([(6, 6)] * 7, torch.bfloat16), ranks=Ranks(0, 4, lambda own: own.repeat(4, 1, 1))
    )
    with Sizes():
        take_steps(optimizer, number=1)
    assert max(sizes) == 2 * 6 * 6  # the matrices of one rank


@pytest.mark.cuda
def test_a_step_on_a_gpu_is_that_on_the_cpu_and_does_not_wait_for_it():
    reference = take_steps(muon(weights()), number=3)
    optimizer = muon([nn.Parameter(weight.detach().cuda()) for weight in weights()])
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for weight in optimizer.param_groups[0]["params"]:
            weight.grad = torch.randn(weight.shape, generator=generator).cuda()
        optimizer.found_inf = torch.zeros((), device="cuda")
        with waits_refused():
            optimizer.step()
    found = [weight.detach().cpu() for weight in optimizer.param_groups[0]["params"]]
    assert close(found, reference, tolerance=5e-3)  # the matmuls are in bfloat16
