"""Values of a checkpoint that torch can read and no run could resume from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.train.runs import last, run
from xftrain.checkpoint.file import read_checkpoint
from xftrain.errors import ConfigError

Content = dict[str, Any]


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Content:
    run_dir = tmp_path_factory.mktemp("good")
    run(run_dir, "max_steps=1")
    return read_checkpoint(last(run_dir))


def _set(*keys: Any) -> Callable[[Any, Content], Content]:
    def put(value: Any, content: Content) -> Content:
        changed: Any = {**content}
        node = changed
        for key in keys[:-1]:
            node[key] = list(node[key]) if isinstance(node[key], list) else dict(node[key])
            node = node[key]
        node[keys[-1]] = value
        return changed

    return put


EMBED = _set("state_dict", "model.embed.weight")
PROGRESS = _set("loops", "fit_loop", "epoch_loop.batch_progress", "total")
BATCH_SIZE = _set("xftrain", "config", "data", "batch_size")
VALUES: dict[str, tuple[Callable[[Any, Content], Content], Any, str]] = {
    "a terabyte of one number": (EMBED, torch.zeros(1).expand(2**38), "a tensor of shape"),
    "overlapping rows": (EMBED, torch.zeros(95).as_strided((64, 32), (1, 1)), "a tensor of shape"),
    "sparse": (EMBED, torch.eye(3).to_sparse(), "more than plain values"),
    "meta": (EMBED, torch.zeros(3, device="meta"), "more than plain values"),
    "with attributes": (EMBED, torch.nn.Buffer(torch.zeros(3)), "more than plain values"),
    "no tensor": (EMBED, 3.0, "is no checkpoint"),
    "a step below 0": (_set("global_step"), -1, "is no checkpoint"),
    "a step that is huge": (_set("global_step"), 2**200, "is no checkpoint"),
    "a step that is true": (_set("global_step"), True, "is no checkpoint"),
    "a time that is no number": (_set("xftrain", "saved_at"), float("nan"), "is no checkpoint"),
    "a time that is huge": (_set("xftrain", "saved_at"), 2**63, "is no checkpoint"),
    "a step that no run reaches": (_set("global_step"), 2**53, "is no checkpoint"),
    "a progress near its end": (PROGRESS, {"ready": 2**62 - 1}, "is no checkpoint"),
    "a progress of text": (PROGRESS, {"ready": "x", "completed": 1}, "is no checkpoint"),
    "a progress without end": (PROGRESS, {"ready": float("inf")}, "is no checkpoint"),
    "an option that is a tensor": (BATCH_SIZE, torch.zeros(2), "configuration has a DescribedT"),
    "skipped steps of text": (_set("xftrain", "num_skipped"), "x", "is no checkpoint"),
    "a progress below 0": (PROGRESS, {"ready": -5, "completed": 1}, "is no checkpoint"),
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_cannot_be_is_refused(tmp_path, content, kind):
    put, value, why = VALUES[kind]
    torch.save(put(value, content), tmp_path / "hostile.ckpt")
    with pytest.raises(ConfigError, match=why) as refused:
        read_checkpoint(tmp_path / "hostile.ckpt")
    assert "\n" not in str(refused.value)


MOMENT = _set("optimizer_states", 0, "state", 0)
WRONG: dict[str, tuple[Callable[[Any, Content], Content], Any]] = {
    "steps that are no number": (MOMENT, {"step": torch.tensor(float("nan"))}),
    "steps below 0": (MOMENT, {"step": torch.tensor(-3.0)}),
    "a moment of another shape": (MOMENT, {"exp_avg": torch.zeros(7)}),
    "a moment that is no tensor": (MOMENT, {"exp_avg": [1.0]}),
    "a state that is a list": (_set("optimizer_states", 0, "state"), [1, 2]),
    "loops of numbers": (_set("loops", "fit_loop"), 3),
    "a metric that is huge": (_set("callbacks", "RunStart", "metrics"), {"x": 2**2000}),
    "callbacks of text": (_set("callbacks", "Checkpoint"), "best"),
    "a best loss of text": (_set("callbacks", "Checkpoint"), {"best_loss": "x"}),
}


@pytest.mark.fault("hostile checkpoint")
@pytest.mark.parametrize("kind", WRONG)
def test_a_part_that_no_run_can_take_up_is_refused(tmp_path, content, kind):
    put, value = WRONG[kind]
    if put is MOMENT:
        value = {**content["optimizer_states"][0]["state"][0], **value}
    path = tmp_path / "hostile.ckpt"
    torch.save(put(value, content), path)
    with pytest.raises(ConfigError, match="cannot be resumed") as refused:
        run(tmp_path / "run", f"ckpt={path}", "max_steps=2")
    assert "\n" not in str(refused.value)


@pytest.mark.fault("hostile checkpoint")
def test_weights_of_integers_are_refused(tmp_path, content):
    # they were taken for floats without a word
    weight = content["state_dict"]["model.embed.weight"]
    torch.save(EMBED(torch.zeros_like(weight, dtype=torch.int32), content), tmp_path / "x.ckpt")
    said = r"model\.embed\.weight, \[64, 32\] of torch\.int32 there and \[64, 32\] here"
    with pytest.raises(ConfigError, match=said):
        run(tmp_path / "run", f"ckpt={tmp_path / 'x.ckpt'}")


def test_plain_values_of_all_kinds_come_back(tmp_path, content):
    dense = [torch.zeros(3, dtype=d) for d in (torch.bool, torch.uint16, torch.float8_e4m3fn)]
    own: Any = {
        "bytes": b"\0\xff",
        "numbers": [{1, 2}, (1, -2, 70000, 2**100), 1.5, None, True],
        "tensors": [*dense, torch.zeros(4, 4).t(), torch.zeros(0), torch.zeros(4, 4)[1:, 2:]],
        "torch": [torch.Size([2, 3]), torch.device("cpu"), torch.float16],
        "module": torch.nn.Linear(2, 2).state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "order": OrderedDict(a=1),
    }
    path = tmp_path / "own.ckpt"
    torch.save({**content, "callbacks": {"Mine": own}}, path)
    held = read_checkpoint(path)["callbacks"]["Mine"]
    assert held["numbers"] == own["numbers"] and held["torch"] == own["torch"]
    assert held["bytes"] == own["bytes"] and held["order"] == own["order"]
    assert [one.dtype for one in held["tensors"]] == [one.dtype for one in own["tensors"]]
