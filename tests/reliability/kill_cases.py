"""The commands that are killed: what they run, and when they are whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# All that is open is as users have it; model.attn is auto.
_TINY = (
    "model.dim=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.dropout=0.1",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=15",
    "callbacks.checkpoint.every_n_steps=4",
    "callbacks.sample=null",
    "callbacks.attention_pattern=null",
)


_COUNTING = (*_TINY, "seq=16", "batch_tokens=128", "data.stop_at_accuracy=null")


_BENCHMARK = (
    "model.attn=naive",
    "batch_tokens=128",
    "max_steps=2",
    "trainer.accelerator=cpu",
    "~callbacks.doctor",
    "~callbacks.packed",
    "~callbacks.alibi",
    "~callbacks.attention_sweep",
    "callbacks.parity.length=32",
    "callbacks.parity.heads=[mha]",
    "callbacks.grouped.length=32",
    "callbacks.train_sweep.attn=[naive]",
    "callbacks.train_sweep.heads=[mha]",
    "callbacks.train_sweep.ffn=[gelu]",
)


@dataclass
class Case:
    """What became of one folder.

    Attributes:
        kind: of the command.
        number: of the folder.
        hits: where each kill found the command.
        weights: sentences on weights that are not those of the uninterrupted run.
        rows: sentences on rows, points and results.
        survivors_s: longest time that processes outlived a killed one of them.
    """

    kind: str
    number: int
    hits: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)
    survivors_s: float = 0.0


@dataclass(frozen=True)
class Kind:
    """A command to be killed.

    Attributes:
        words: of the command, for a folder.
        resume: the words of the command that takes it up again.
        runs: the folders of runs that are compared, below the command's own.
        kills_one: whether half of the kills hit one process of several.
    """

    words: Callable[[Path], list[str]]
    resume: Callable[[Path], list[str]]
    runs: tuple[str, ...] = (".",)
    kills_one: bool = False


def _run(*overrides: str) -> Callable[[Path], list[str]]:
    return lambda folder: [*overrides, f'hydra.run.dir="{folder}"', "ckpt=auto"]


def _sweep(folder: Path) -> list[str]:
    values = ("model.heads=mha,mqa", "max_steps=150", "ckpt=auto", "model.attn=sdpa")
    return ["-m", *_COUNTING, *values, f'hydra.sweep.dir="{folder}"']


def _resumed_sweep(folder: Path) -> list[str]:
    is_known = (folder / ".sweep.json").is_file()
    return [f"resume_sweep={folder}"] if is_known else _sweep(folder)


def _benchmark(folder: Path) -> list[str]:
    return ["--config-name", "benchmark", *_BENCHMARK, f'hydra.run.dir="{folder}"']


def kinds(corpus: Path) -> dict[str, Kind]:
    """Those that there are; of a length that a slow machine does not finish at once."""
    one = _run(*_COUNTING, "max_steps=400")
    ranks = _run(*_COUNTING, "max_steps=200", "trainer=ddp", "trainer.devices=2")
    text = _run(
        *_TINY,
        "seq=32",
        "batch_tokens=128",
        "max_steps=200",
        "data=text",
        f'data.path="{corpus}"',
        f'data.cache_dir="{corpus.parent / "cache"}"',
        "data.tokenizer=bpe",
        "data.vocab_size=300",
        "data.packing=true",
        "trainer.accumulate_grad_batches=3",
    )
    return {
        "one": Kind(one, one),
        "ranks": Kind(ranks, ranks, kills_one=True),
        "text": Kind(text, text),
        "sweep": Kind(_sweep, _resumed_sweep, runs=("0*", "1*")),
        "benchmark": Kind(_benchmark, _benchmark, runs=()),
    }
