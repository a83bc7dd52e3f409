"""data.stream=true: training on text that is prepared meanwhile, with the same batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from xftrain.callbacks.watchdog import Watchdog
from xftrain.data import _streamed_rows
from xftrain.data.text import Text
from xftrain.data.tokens import cache, chunks, files, growing, published
from xftrain.data.tokens.background import Background
from xftrain.data.tokens.cache_folder import exclusive_lock
from xftrain.errors import ConfigError, RunError

SEQ, BATCH = 32, 4
OPTIONS = {"tokenizer": "bpe", "vocab_size": 300, "num_val_batches": 2, "val_fraction": 0.3}
PACKINGS = [False, True, "best_fit"]


class NotThereError(Exception):
    """More text is not prepared yet."""


@dataclass
class Stalled:
    """A preparation that makes no more."""

    preparation: object

    def is_running(self):
        return True


class Impatient:
    """A clock for a run that does not wait."""

    monotonic = time.monotonic

    def sleep(seconds):
        raise NotThereError


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Six files of records, of several chunks and windows, and a long text."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(chunks, "WHOLE_BYTES", 20_000)
    monkeypatch.setattr(_streamed_rows, "WINDOW_TOKENS", 2000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(6):
        texts = [
            f"document {n} of file {file}\n" * (1 + (file * 50 + n) * 37 % 90) for n in range(20)
        ]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{file}.jsonl").write_text(lines)
    (folder / "long.txt").write_text("".join(f"line {n} of a long text\n" for n in range(3000)))
    return folder


def text(corpus, cache_dir, packing=False, *, seed=1, world_size=1, **options):
    options = {**OPTIONS, "packing": packing, "stream": True} | options
    path = str(corpus)
    return Text(SEQ, BATCH, seed, world_size, path=path, cache_dir=str(cache_dir), **options)


def values(batch):
    return batch.tokens_BM.tolist(), batch.labels_BM.tolist(), batch.seqlens


def available(source, num_steps=10**6):
    """The validation batches, and the training batches that can be made."""
    val = [values(source.batch("val", step)) for step in range(source.num_val_batches)]
    train = []
    for step in range(num_steps):
        try:
            train.append(values(source.batch("train", step)))
        except NotThereError:
            break
    return val, train


@pytest.fixture
def seen(monkeypatch):
    """What can be made at each moment of a preparation in this process, by packing."""
    monkeypatch.setattr(growing, "Background", Stalled)
    monkeypatch.setattr(growing, "time", Impatient)
    found = {packing: [] for packing in PACKINGS}

    def publish(folder, sizes):
        published.publish(folder, sizes)
        for packing in PACKINGS:
            try:
                source = text(*seen.places, packing, **seen.options)
            except NotThereError:
                continue
            found[packing].append((source.digest(), *available(source)))

    monkeypatch.setattr(files, "publish", publish)

    def seen(corpus, cache_dir, **more):
        seen.places, seen.options = (corpus, cache_dir), more
        options = {name: OPTIONS[name] for name in ("tokenizer", "vocab_size", "val_fraction")}
        cache.prepare(str(corpus), cache_dir=str(cache_dir), num_workers=0, **options, **more)
        return found

    return seen


def test_no_batch_depends_on_how_much_is_prepared(corpus, tmp_path, seen):
    found = seen(corpus, tmp_path / "cache")
    for packing in PACKINGS:
        counts = [len(train) for _, _, train in found[packing]]
        assert counts[0] > 0 and counts == sorted(counts) and len(set(counts)) > 3
        whole = text(corpus, tmp_path / "cache", packing)
        val, train = available(whole, counts[-1])
        for digest, some_val, some_train in found[packing]:
            assert digest == whole.digest() and some_val == val
            assert some_train == train[: len(some_train)]


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_epoch_has_the_pieces_of_the_usual_order_once(corpus, tmp_path, packing):
    """The same pieces, or with best fit the same tokens of the same documents."""
    streamed = text(corpus, tmp_path / "cache", packing)
    usual = text(corpus, tmp_path / "cache", packing, stream=False)
    rows = streamed._rows
    for step in count():  # until the end of the epoch is known
        streamed.batch("train", step)
        if not rows._add_window():
            break
    size = rows._ends[-1]
    usual_pieces = usual._rows.train.between(0, 0, usual._rows.train.num_tokens)
    orders = []
    for epoch in range(3):
        pieces = rows.train_pieces(epoch * size, (epoch + 1) * size)
        orders.append(pieces.starts.tolist())
        assert positions(pieces) == positions(usual_pieces)
        if packing != "best_fit":
            assert sorted(zip(*pieces, strict=True)) == sorted(zip(*usual_pieces, strict=True))
    assert orders[0] != orders[1] != orders[2]
    ends = np.array(rows._ends)
    assert len(ends) > 8 and orders[0] != sorted(orders[0])


def positions(pieces):
    """The positions of all tokens that are no padding."""
    return sorted(
        position
        for start, length in zip(*map(np.ndarray.tolist, pieces), strict=True)
        if start >= 0
        for position in range(start, start + length)
    )


def test_ranks_share_the_batches_of_one(corpus, tmp_path):
    alone = text(corpus, tmp_path / "cache", True)
    two = text(corpus, tmp_path / "cache", True, world_size=2)
    for step in range(40):
        batch = values(two.batch("train", step // 2, step % 2))
        assert batch == values(alone.batch("train", step))


def test_a_run_makes_the_token_files_in_another_process(corpus, tmp_path):
    streamed = text(corpus, tmp_path / "cache", num_workers=1)
    background = streamed._cache._background
    batches = [values(streamed.batch("train", step)) for step in range(400)]  # over an epoch
    while background.is_running():
        time.sleep(0.02)
    again = text(corpus, tmp_path / "cache", num_workers=1)
    assert again._cache._background is None and again.digest() == streamed.digest()
    assert batches == [values(again.batch("train", step)) for step in range(400)]
    assert again.facts() == text(corpus, tmp_path / "cache", stream=False).facts()
    assert streamed.baseline() == again.baseline()
    assert torch.equal(*(s.batch("val", 1).tokens_BM for s in (streamed, again)))


def test_the_error_of_the_preparation_is_that_of_the_run(corpus, tmp_path):
    with pytest.raises(ConfigError, match="^data.text_key must be the key"):
        text(corpus / "0.jsonl", tmp_path / "cache", text_key="body")


def test_a_preparation_that_is_killed_ends_the_run_and_is_resumed(corpus, tmp_path, monkeypatch):
    started = []

    def begin(preparation):
        background = Background(preparation)
        started.append(background)
        os.kill(background.process.pid, signal.SIGKILL)
        return background

    with monkeypatch.context() as patch:
        patch.setattr(growing, "Background", begin)
        with pytest.raises(RunError, match=r"^data.stream: .* ended too early, .*SIGKILL.*: run"):
            text(corpus, tmp_path / "cache")
    assert text(corpus, tmp_path / "cache").num_val_batches == 2


def test_the_preparation_ends_with_its_source(corpus, tmp_path):
    streamed = text(corpus, tmp_path / "cache")
    process = streamed._cache._background.process
    del streamed
    assert process.returncode is not None


START = """
import sys, time
from xftrain.data.tokens.background import Background
from xftrain.data.tokens.cache import find
background = Background(find(sys.argv[1], cache_dir=sys.argv[2]))
print(background.process.pid, flush=True)
time.sleep(60)
"""


def test_the_preparation_ends_with_a_run_that_is_killed(corpus, tmp_path):
    cache_dir = tmp_path / "cache"
    folder = cache.find(str(corpus), cache_dir=str(cache_dir)).folder
    with exclusive_lock(cache_dir / f".{folder.name}.lock"):  # the preparation waits
        command = [sys.executable, "-c", START, str(corpus), str(cache_dir)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
        pid = int(run.stdout.readline())
        deadline = time.monotonic() + 20
        while _state(pid) != "S" or b"background" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline
        time.sleep(0.5)  # until it has begun
        run.kill()
        run.communicate()
        while _state(pid) not in ("", "Z"):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_text_is_used_once_its_file_is_known_not_to_have_changed(corpus, tmp_path, monkeypatch):
    find, num_published = cache.find_texts, []
    file, options = corpus / "3.jsonl", {"cache_dir": str(tmp_path / "cache"), "num_workers": 0}
    lines = file.read_text()
    with monkeypatch.context() as patch:

        def find_and_change(*arguments, **options):
            found = find(*arguments, **options)
            file.write_text(lines.replace("document", "imposter"))
            return found

        patch.setattr(cache, "find_texts", find_and_change)
        patch.setattr(files, "publish", lambda _, sizes: num_published.append(sizes["train"][0]))
        with pytest.raises(RunError, match="files must not change while they are read"):
            cache.prepare(str(corpus), **options)
    file.write_text(lines)
    tokens = cache.prepare(str(corpus), **options).streams["train"].tokens[: num_published[-1]]
    spelled = bytes(tokens[tokens < 256].astype(np.uint8))
    assert b"file 1" in spelled and b"file 3" not in spelled


def test_other_ranks_read_what_rank_0_makes(corpus, tmp_path, monkeypatch):
    first = text(corpus, tmp_path / "cache", True, world_size=2)
    monkeypatch.setattr(growing, "rank", lambda: 1)
    second = text(corpus, tmp_path / "cache", True, world_size=2)
    assert second._cache._background is None
    for step in range(9):
        assert values(first.batch("train", step, 1)) == values(second.batch("train", step, 1))


def test_held_out_files_are_prepared_first(corpus, tmp_path, seen):
    (corpus / "5.jsonl").rename(tmp_path / "val.jsonl")
    val_path = str(tmp_path / "val.jsonl")
    found = seen(corpus, tmp_path / "cache", val_path=val_path)
    assert len(found[True]) > 3
    assert all(len(val) == 2 for _, val, _ in found[True])


def test_waiting_for_text_is_progress_for_the_watchdog(corpus, tmp_path):
    watchdog = Watchdog()
    before = watchdog._num_signs()
    text(corpus, tmp_path / "cache")
    assert watchdog._num_signs() > before
