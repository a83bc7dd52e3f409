"""Runs a row as a user would, and compares what it made with the reference."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import xftrain
from tests.pairs import reference
from tests.pairs.factors import OWN_OPTIONS, Factor, Row, overrides_of
from tests.pairs.spy import Spy
from tests.pairs.values import CACHE, CORPUS
from xftrain.commands import builder
from xftrain.config.compose import compose, validate
from xftrain.config.run_config import RunConfig
from xftrain.errors import ConfigError
from xftrain.train.hardware import resolve

_SPY = "++callbacks.spy={{_target_:tests.pairs.spy.Spy,probes:{probes}}}"


@dataclass(frozen=True)
class Limits:
    """How far a run of a dtype may be from the reference, relative to it.

    Attributes:
        loss: of a batch, and of the validation with the run's own weights.
        moments: of all gradients together, as the norm of the difference.
        slope: between the gradient and the differences of the loss along it.
    """

    loss: float
    moments: float
    slope: float


_ROUNDING = 1e-5  # of the largest moment of a weight
# float32 differs by rounding alone, on a GPU also by what kernels multiply in TF32. In 16 bits
# gradients of near-zero scores are mostly rounding; bf16-true rounds the weights themselves.
LIMITS = {
    "32-true": Limits(loss=2e-5, moments=5e-4, slope=0.02),
    "32-true on a GPU": Limits(loss=2e-4, moments=5e-3, slope=0.05),
    "16-mixed": Limits(loss=5e-3, moments=0.05, slope=0.25),
    "bf16-mixed": Limits(loss=2e-2, moments=0.15, slope=0.25),
    "bf16-true": Limits(loss=3e-2, moments=0.25, slope=0.25),
}


@dataclass
class Outcome:
    """What became of a row.

    Attributes:
        refusal: the reason, where it was refused.
        differences: sentences, empty where the run is the reference's.
        compared: what was compared.
    """

    refusal: str | None = None
    differences: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Places:
    """Folders of a row."""

    corpus: Path
    cache: Path

    def typed(self, row: Row, factors: list[Factor]) -> list[str]:
        """The row's command line."""
        places = {CORPUS: str(self.corpus), CACHE: str(self.cache)}
        words = overrides_of(row, factors)
        for word, path in places.items():
            words = [one.replace(word, path) for one in words]
        return words


def make_corpus(folder: Path) -> Path:
    """A few files of text, enough for each value of `seq` and `val_fraction`.

    Beside the folder is a file of conversations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        words = (f"word{(number * 31 + i * i) % 97}" for i in range(60 + number))
        (folder / f"{number}.txt").write_text(" ".join(words) + "\n")
    with open(f"{folder}.jsonl", "w") as file:
        for number in range(60):
            turns = [("user", f"{number}"), ("assistant", "so" * (1 + number % 30))]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder


def run_row(row: Row, factors: list[Factor], places: Places, run_dir: Path) -> Outcome:
    """Runs it and compares."""
    typed = places.typed(row, factors)
    logging.getLogger("xftrain").info("row: %s", " ".join(typed))
    try:
        probes = row["compile"] != "false" or torch.cuda.is_available()
        spy = _SPY.format(probes=str(probes).lower())
        cfg = compose(*typed, spy, config_dir=OWN_OPTIONS)
        checked = validate(cfg)
        result = xftrain.run(cfg, run_dir)
    except ConfigError as error:
        return Outcome(refusal=normalized(str(error), places))
    finally:
        torch._dynamo.reset()
    return compare(checked, result, Spy.last)


def normalized(reason: str, places: Places) -> str:
    """A refusal's reason without numbers, folders and lists of keys, which grow.

    And without xFormers' list of what each of its kernels lacks, in which sets are printed.
    """
    for path in (places.corpus, places.cache):
        reason = reason.replace(str(path), "FOLDER")
    reason = re.sub(r"with inputs:.*?(?=\. Nearest|$)", "with these inputs", reason, flags=re.S)
    reason = re.sub(r"which has [^.]*", "which has others", reason)
    return re.sub(r"\d+(\.\d+)?(e-?\d+)?", "N", reason)


def compare(cfg: RunConfig, result: Mapping[str, Any], spy: Spy) -> Outcome:
    """The run against the reference."""
    found = Outcome()
    device, precision = resolve(cfg.trainer.accelerator, cfg.trainer.precision)
    on_gpu = " on a GPU" * (device.type == "cuda" and precision == "32-true")
    limits = LIMITS[precision + on_gpu]
    data = builder.build_data(cfg)
    model = reference.build(cfg, builder.vocab_size(cfg.model, data))
    worst: dict[str, float] = {}

    def note(what: str, error: float) -> None:
        worst[what] = max(worst.get(what, 0.0), error if error == error else math.inf)

    end = spy.steps[-1]
    if spy.slope is not None:
        note("slope", _relative(spy.slope[1], spy.slope[0]))
    with torch.random.fork_rng(devices=[]):
        # in 16 bits the run's own weights are rounded, and so they are in both
        val_loss = reference.validation_loss(cfg, model, data, end.weights)
        note("val/loss", _relative(result["metrics"]["val/loss"], val_loss))
        dropout = cfg.model.dropout
        # other numbers are dropped there than here: the slope has been compared
        drops_others = dropout and (cfg.compile or spy.device.type != "cpu")
        if not (spy.overflowed or drops_others):
            made = reference.train(cfg, model, data, spy.steps[:-1])
            for number, expected in enumerate(made):
                after = spy.steps[number + 1]
                if losses := spy.steps[number].losses:
                    for value, wanted in zip(losses, expected.losses, strict=True):
                        note("losses", _relative(value, wanted))
                if expected.moments:
                    moments = {
                        name: moment
                        for name, state in after.state.items()
                        if (moment := reference.first_moment(state)) is not None
                    }
                    note("moments", _distance(moments, expected.moments))
                if precision == "32-true":
                    found_weights = _settled(after.weights, expected)
                    note("weights", _distance(found_weights, expected.weights))
    limit_of = {"moments": limits.moments, "weights": limits.moments, "slope": limits.slope}
    found.compared = list(worst)
    found.differences = [
        f"{what}: relative error {error:.2g}, limit {limit_of.get(what, limits.loss):.2g}"
        for what, error in worst.items()
        if error > limit_of.get(what, limits.loss)
    ]
    if spy.num_steps != cfg.max_steps:
        found.differences.append(f"steps: {spy.num_steps} of {cfg.max_steps}")
    return found


def _relative(value: float, expected: float) -> float:
    return abs(value - expected) / max(abs(expected), 1e-12)


def _settled(weights: Mapping[str, Tensor], expected: reference.Made) -> dict[str, Tensor]:
    """The weights, with what is expected in the place of those whose gradient is rounding.

    A bias of K has no influence on the softmax, so its gradient is 0 but for rounding, of which
    AdamW makes a whole step in either direction.
    """
    settled = {}
    for name, weight in weights.items():
        settled[name] = weight.double()
        if (moment := expected.moments.get(name)) is not None:
            is_rounding = moment.abs() < _ROUNDING * moment.abs().max()
            settled[name] = torch.where(is_rounding, expected.weights[name], settled[name])
    return settled


def _distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest over the weights of the difference's norm, to the norm of what is expected.

    A norm below a thousandth of the largest is rounding, and is taken for so much.
    """
    assert found.keys() == expected.keys()
    norms = {name: float(value.norm()) for name, value in expected.items()}
    least = 1e-3 * max(norms.values())
    errors = [
        float((found[name].double() - value).norm()) / max(norms[name], least, 1e-12)
        for name, value in expected.items()
    ]
    return max(errors)
