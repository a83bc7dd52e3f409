"""A preparation in shards: killed and resumed, by several processes, and with foreign shards."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xftrain.data.tokens import cache, child, chunks, pool, shards
from xftrain.data.tokens.cache import prepare
from xftrain.data.tokens.progress import Progress
from xftrain.data.tokens.tokenizer import Bytes
from xftrain.errors import ConfigError, RunError

OPTIONS = {"tokenizer": "bpe", "vocab_size": 300}


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A corpus of ten or so small chunks, with documents that are longer than one."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(chunks, "WHOLE_BYTES", 20_000)
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [f"document {number} of the corpus\n" * (1 + number * 37 % 90) for number in range(60)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "a.jsonl").write_text(lines)
    (folder / "b.txt").write_text("a long text without end\n" * 9000)
    return folder


def contents_of(folder):
    """All files but meta.json, which has times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "meta.json"}


def written(monkeypatch, kill_after=None):
    """The numbers of the shards that are written, of which one may be the last."""
    numbers = []

    def write(path, *arguments):
        if kill_after is not None and len(numbers) == kill_after:
            raise KeyboardInterrupt  # nothing cleans up after it, as after a kill
        numbers.append(int(path.stem))
        shards.write_shard(path, *arguments)

    monkeypatch.setattr(pool, "write_shard", write)
    return numbers


def test_a_killed_preparation_is_resumed_to_the_same_files(corpus, tmp_path, monkeypatch, caplog):
    whole = prepare(str(corpus), cache_dir=str(tmp_path / "whole"), **OPTIONS)
    cache_dir = tmp_path / "cache"
    done = []
    for kill_after in (0, 3, 1, 2):
        numbers = written(monkeypatch, kill_after)
        with pytest.raises(KeyboardInterrupt):
            prepare(str(corpus), cache_dir=str(cache_dir), **OPTIONS)
        done += numbers
        assert len(list(cache_dir.glob(".*.shards/*.shard"))) == len(done)
    numbers = written(monkeypatch)
    caplog.set_level(logging.INFO)
    resumed = prepare(str(corpus), cache_dir=str(cache_dir), **OPTIONS)
    assert done == list(range(6)) and numbers == list(range(6, len(numbers) + 6))
    assert f"6 of {len(numbers) + 6} shards were there already" in caplog.text
    assert contents_of(resumed.folder) == contents_of(whole.folder)
    assert resumed.digest == whole.digest and resumed.summary == whole.summary
    assert [path.name for path in cache_dir.iterdir() if path.is_dir()] == [resumed.folder.name]


def test_a_vocabulary_is_trained_once_although_killed(corpus, tmp_path, monkeypatch):
    written(monkeypatch, kill_after=1)
    with pytest.raises(KeyboardInterrupt):
        prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)
    written(monkeypatch)
    monkeypatch.setattr("xftrain.data.tokens.tokenizer.Bpe.train", None)
    prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)


def flip_byte(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap(path):
    other = path.with_name("00000003.shard")
    moved = path.rename(path.with_name("moved"))
    other.rename(path)
    moved.rename(other)


def replace_by_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def replace_by_fifo(path):
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "a byte of the tokens": lambda path: flip_byte(path, 5000),
    "a byte of the header": lambda path: flip_byte(path, 20),
    "a byte of the sizes": lambda path: flip_byte(path, 86),
    "cut": lambda path: os.truncate(path, 900),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "empty": lambda path: os.truncate(path, 0),
    "another chunk's": swap,
    "a link": replace_by_link,
    "a FIFO": replace_by_fifo,
    "a vocabulary": lambda path: flip_byte(path.with_name("tokenizer.json"), 300),
    "a seal": lambda path: os.truncate(path.with_name("tokenizer.seal"), 3),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_shard_that_is_not_as_written_is_made_again(corpus, tmp_path, monkeypatch, damage):
    whole = prepare(str(corpus), cache_dir=str(tmp_path / "whole"), **OPTIONS)
    written(monkeypatch, kill_after=5)
    with pytest.raises(KeyboardInterrupt):
        prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)
    (shard,) = (tmp_path / "cache").glob(".*.shards/00000002.shard")
    DAMAGES[damage](shard)
    numbers = written(monkeypatch)
    resumed = prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)
    assert contents_of(resumed.folder) == contents_of(whole.folder)
    remade = [number for number in numbers if number < 5]
    assert remade == {"another chunk's": [2, 3], "a vocabulary": [], "a seal": []}.get(damage, [2])


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_folder_of_shards_that_is_none_is_refused(corpus, tmp_path, monkeypatch, kind):
    written(monkeypatch, kill_after=1)
    with pytest.raises(KeyboardInterrupt):
        prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)
    (folder,) = (tmp_path / "cache").glob(".*.shards")
    moved = folder.rename(tmp_path / "moved")
    folder.symlink_to(moved) if kind == "link" else folder.touch()
    with pytest.raises(ConfigError, match="must be a folder that this user has made"):
        prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)
    assert len(list(moved.iterdir())) == 3


def test_text_that_changes_meanwhile_leaves_no_wrong_tokens(corpus, tmp_path, monkeypatch):
    whole = prepare(str(corpus), cache_dir=str(tmp_path / "whole"), **OPTIONS)
    lines = (corpus / "a.jsonl").read_text()
    find = cache.find_texts
    with monkeypatch.context() as patch:

        def find_and_change(*arguments, **options):
            found = find(*arguments, **options)
            (corpus / "a.jsonl").write_text(lines.replace("document", "imposter"))
            return found

        patch.setattr(cache, "find_texts", find_and_change)
        with pytest.raises(RunError, match="files must not change while they are read"):
            prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)
    (corpus / "a.jsonl").write_text(lines)
    again = prepare(str(corpus), cache_dir=str(tmp_path / "cache"), **OPTIONS)
    assert contents_of(again.folder) == contents_of(whole.folder)


def test_processes_make_the_same_files_as_one(corpus, tmp_path):
    alone = prepare(str(corpus), cache_dir=str(tmp_path / "alone"), num_workers=0, **OPTIONS)
    many = prepare(str(corpus), cache_dir=str(tmp_path / "many"), num_workers=2, **OPTIONS)
    assert contents_of(many.folder) == contents_of(alone.folder)
    assert many.folder.name == alone.folder.name and many.digest == alone.digest


texts = st.lists(st.text("ab \n漢", min_size=1, max_size=300), min_size=2, max_size=12, unique=True)


@settings(max_examples=15, deadline=None)
@given(texts, st.integers(200, 3000))
def test_tokens_of_bytes_do_not_depend_on_chunks(tmp_path_factory, texts, chunk_bytes):
    folder = tmp_path_factory.mktemp("chunks")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "a.jsonl").write_text(lines)
    whole = prepare(str(folder), cache_dir=str(folder / "whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
        small = prepare(str(folder), cache_dir=str(folder / "small"))
    assert contents_of(small.folder) == contents_of(whole.folder)


def test_an_error_in_a_process_is_that_of_the_preparation(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("xftrain.data.tokens.files.shard_path", lambda *_: Path("/dev/null/x"))
    with pytest.raises(RunError, match="^data.cache_dir: the token files could not be written"):
        prepare(str(corpus), cache_dir=str(tmp_path / "cache"), num_workers=1, **OPTIONS)


def test_a_process_that_is_killed_is_one_sentence(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(child, "_CODE", "import os; os.kill(os.getpid(), 9)  # {path}")
    with pytest.raises(RunError, match=r"^data.num_workers: .* ended too early, .*SIGKILL.*: run"):
        prepare(str(corpus), cache_dir=str(tmp_path / "cache"), num_workers=1, **OPTIONS)
    assert list((tmp_path / "cache").glob(".*.shards"))  # what is done is used next time


PREPARE_SLOWLY = """
import sys
from xftrain.data.tokens import cache, child, chunks
chunks.CHUNK_BYTES = chunks.WHOLE_BYTES = 20_000
child._CODE = (
    "import os, sys, time; sys.path[:] = {path!r}; from xftrain.data.tokens import worker; "
    "begin = lambda *_: (open('process-' + str(os.getpid()), 'w'), time.sleep(60)); "
    "worker.write_shard = begin; worker.main()"
)
cache.prepare(sys.argv[1], cache_dir="cache", num_workers=2)
"""


def test_processes_end_with_a_preparation_that_is_killed(corpus, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PREPARE_SLOWLY, str(corpus)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 20
    while len(found := list(tmp_path.glob("process-*"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    processes = [Path("/proc", path.name.partition("-")[2]) for path in found]
    while any(path.exists() and _state(path) != "Z" for path in processes):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _state(process):
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_process_that_tokenizes_imports_no_torch():
    code = "import sys, xftrain.data.tokens.worker; print([m for m in sys.modules if m in TRAP])"
    code = code.replace("TRAP", "('torch', 'pyarrow', 'lightning', 'pydantic')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_preparation_waits_for_another_and_uses_its_files(corpus, tmp_path, monkeypatch):
    cache_dir = tmp_path / "cache"
    first = prepare(str(corpus), cache_dir=str(cache_dir), **OPTIONS)
    shutil.move(first.folder, tmp_path / "made")

    def locked(_):  # the other one finishes meanwhile
        shutil.move(tmp_path / "made", first.folder)
        return True

    monkeypatch.setattr("xftrain.data.tokens.cache_folder._locked", locked)
    numbers = written(monkeypatch)
    assert prepare(str(corpus), cache_dir=str(cache_dir), **OPTIONS).digest == first.digest
    assert numbers == []


def test_cpus_are_limited_by_the_control_group(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for text, expected in (("max 100000", 64), ("250000 100000", 2), ("10000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text)
        monkeypatch.setattr(pool, "_CPU_LIMIT", tmp_path / "cpu.max")
        assert pool.usable_cpus() == expected


def test_the_log_tells_share_speed_and_time(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr("xftrain.data.tokens.progress.time.monotonic", lambda: now[0])
    caplog.set_level(logging.INFO)
    progress = Progress(total=1000)
    progress.update(200, 800_000, 0, is_new=False)
    for number in range(1, 40):
        progress.update(200 + 20 * number, 800_000 + 80_000 * number, number - 1, is_new=True)
        now[0] += 1.0
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "data.path: 30 % tokenized, 0.1 MB/s, about 35 s left"
    assert 3 <= len(said) <= 5


def test_a_boundary_is_in_no_two_shards(tmp_path):
    """Tokens and boundaries of each shard begin at 0."""
    chunk = chunks.Chunk({"train": [b"ab", b"", b"c"], "val": []}, previous=ord("x"))
    path = shards.shard_path(tmp_path, 0)
    shards.write_shard(path, chunk, Bytes(), digest := chunk.digest("d"))
    shard = shards.read_shard(path, "<u2", digest)
    assert shard.boundaries["train"].tolist() == [2] and shard.tokens["val"].size == 0
    pairs = np.argwhere(shard.bigram_counts).tolist()
    assert pairs == [[97, 98], [98, 256], [120, 97], [256, 99]]
