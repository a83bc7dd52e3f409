import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forked import Forked
from xftrain.data.tokens import cache as token_cache
from xftrain.data.tokens import cache_folder, shards
from xftrain.data.tokens.cache import prepare
from xftrain.data.tokens.shards import dtype_of
from xftrain.data.tokens.tokenizer import Bytes
from xftrain.errors import RunError

SEPARATOR = 256


def contents(stream):
    """The documents of a byte stream."""
    assert stream.tokens[0] == stream.tokens[-1] == SEPARATOR
    assert stream.boundaries.tolist() == np.flatnonzero(stream.tokens == SEPARATOR).tolist()
    pairs = zip(stream.boundaries[:-1], stream.boundaries[1:], strict=True)
    return [bytes(stream.tokens[begin + 1 : end].tolist()) for begin, end in pairs]


@settings(max_examples=15, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=50), min_size=2, max_size=8))
def test_the_streams_are_the_documents(texts):
    with tempfile.TemporaryDirectory() as scratch:
        for number, text in enumerate(texts):
            content = f"{number} {text}".replace("\0", "").encode()  # no copies
            (Path(scratch) / str(number)).write_bytes(content)
        written = [path.read_bytes() for path in Path(scratch).iterdir()]
        streams = prepare(scratch, cache_dir=f"{scratch}/cache").streams
        found = contents(streams["train"]) + contents(streams["val"])
    assert sorted(found) == sorted(written)


def test_a_name_that_is_no_text_is_a_name(folder, cache_dir):
    with open(os.fsencode(folder) + b"/\xff\xfe.txt", "w") as file:
        file.write("odd name")
    assert b"odd name" in contents(prepare(str(folder), cache_dir=str(cache_dir)).streams["train"])


@pytest.mark.parametrize("made", [False, True])
def test_the_log_says_what_there_is_and_what_was_skipped(folder, cache_dir, caplog, made):
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(b"\0")
    (folder / "empty").touch()
    if made:
        prepare(str(folder), cache_dir=str(cache_dir))
        caplog.clear()
    caplog.set_level(logging.INFO)
    cache = prepare(str(folder), cache_dir=str(cache_dir))
    train, val = (len(contents(cache.streams[split])) for split in ("train", "val"))
    assert train + val == 20
    sizes = {split: cache.streams[split].tokens.size for split in ("train", "val")}
    assert (
        f"{train} files to train on ({sizes['train'] - train - 1:,} bytes, {sizes['train']:,} "
        f"tokens), {val} held out ({sizes['val'] - val - 1:,} bytes, {sizes['val']:,} tokens); "
        "skipped 3 binary files, 1 empty file"
    ) in caplog.text


def test_a_cache_inside_the_corpus_is_no_part_of_it(folder):
    first = prepare(str(folder), cache_dir=str(folder / "cache"), tokenizer="bpe")
    again = prepare(str(folder), cache_dir=str(folder / "cache"), tokenizer="bpe")
    assert first.folder == again.folder and first.summary == again.summary
    assert "skipped no files" in first.summary


def modified(cache):
    return {path.name: path.stat().st_mtime_ns for path in cache.folder.iterdir()}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_token_files_are_made_once(folder, cache_dir, tokenizer):
    first = prepare(str(folder), tokenizer=tokenizer, cache_dir=str(cache_dir))
    before = modified(first)
    # the same folder by another name for it
    again = prepare(f"{folder}/../corpus/", tokenizer=tokenizer, cache_dir=str(cache_dir))
    assert again.folder == first.folder and modified(again) == before
    assert again.summary == first.summary
    assert again.tokenizer.spellings == first.tokenizer.spellings
    assert again.streams["train"].tokens.dtype == np.uint16


@pytest.mark.parametrize("change", ["content", "new", "gone", "renamed"])
def test_changed_files_are_noticed(folder, cache_dir, change):
    before = prepare(str(folder), cache_dir=str(cache_dir))
    file = folder / "07.txt"
    if change == "content":
        file.write_text("other words")
    elif change == "new":
        (folder / "new").write_text("new")
    elif change == "gone":
        file.unlink()
    else:
        file.rename(folder / "renamed.txt")
    after = prepare(str(folder), cache_dir=str(cache_dir))
    assert after.folder != before.folder
    found = contents(after.streams["train"]) + contents(after.streams["val"])
    assert sorted(found) == sorted(path.read_bytes() for path in folder.iterdir())


def test_each_setting_has_token_files_of_its_own(folder, cache_dir):
    settings = [{}, {"val_fraction": 0.5}, {"tokenizer": "bpe"}]
    settings.append({"tokenizer": "bpe", "vocab_size": 265})
    made = [prepare(str(folder), cache_dir=str(cache_dir), **options) for options in settings]
    assert len({cache.folder for cache in made}) == 4
    assert made[3].tokenizer.vocab_size == 265 < made[2].tokenizer.vocab_size


@pytest.mark.parametrize(("num_tokens", "dtype"), [(1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_the_last_token_fits_how_tokens_are_kept(num_tokens, dtype):
    tokenizer = Bytes()
    tokenizer.spellings = [b"x"] * num_tokens
    assert dtype_of(tokenizer) == dtype and np.iinfo(dtype).max >= tokenizer.separator


def _prepare(folder, cache_dir, slow=False):
    """Of a process; a slow one says `writing` and stays in the middle of it."""
    if slow:
        shards.BigramCounts.count_pieces = lambda *_: print("writing", flush=True) or time.sleep(60)
    print(prepare(str(folder), cache_dir=str(cache_dir)).folder)


@pytest.mark.long
def test_a_killed_preparation_leaves_nothing_that_looks_finished(folder, cache_dir, tmp_path):
    said = tmp_path / "said"
    process = Forked(_prepare, folder, cache_dir, True, cwd=tmp_path, out=said)
    while not (said.is_file() and said.read_text() == "writing\n"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert any(path.name.startswith(".") and path.is_dir() for path in cache_dir.iterdir())
    cache = prepare(str(folder), cache_dir=str(cache_dir))
    assert len(contents(cache.streams["train"])) > 10
    # and what it left is cleared away
    assert [path.name for path in cache_dir.iterdir() if path.is_dir()] == [cache.folder.name]


def test_processes_side_by_side_make_one_folder(folder, cache_dir, tmp_path):
    outs = [tmp_path / name for name in ("one", "two")]
    processes = [Forked(_prepare, folder, cache_dir, cwd=tmp_path, out=out) for out in outs]
    assert [process.wait() for process in processes] == [0, 0]
    assert len({out.read_text() for out in outs}) == 1
    assert sum(path.is_dir() for path in cache_dir.iterdir()) == 1


def test_without_file_locks_the_first_to_finish_wins(folder, cache_dir, monkeypatch):
    def no_locks(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(cache_folder.fcntl, "flock", no_locks)
    write = token_cache.write_token_files

    def beaten(*arguments):
        monkeypatch.setattr(token_cache, "write_token_files", write)
        self_made = prepare(str(folder), cache_dir=str(cache_dir))  # the other process
        assert self_made.folder.is_dir()
        return write(*arguments)

    monkeypatch.setattr(token_cache, "write_token_files", beaten)
    cache = prepare(str(folder), cache_dir=str(cache_dir))
    assert [path.name for path in cache_dir.iterdir() if path.is_dir()] == [cache.folder.name]


def test_a_full_disk_is_reported_and_leaves_nothing(folder, cache_dir):
    for number in range(20):
        (folder / f"{number}.txt").write_text("many words\n" * 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(RunError, match="data.cache_dir: .* could not be written .*make room"):
            prepare(str(folder), cache_dir=str(cache_dir))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(path.is_dir() for path in cache_dir.iterdir())


def test_the_default_cache_follows_the_xdg_rule(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert prepare(str(folder)).folder.parent == tmp_path / "xdg" / "xftrain"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert prepare(str(folder)).folder.parent == tmp_path / "home" / ".cache" / "xftrain"


@pytest.mark.parametrize("relative", ["rel", "./rel", "../rel"])
def test_a_relative_base_folder_is_ignored(folder, tmp_path, monkeypatch, caplog, relative):
    # it was made in the working folder
    monkeypatch.setenv("XDG_CACHE_HOME", relative)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folder)
    assert prepare(str(folder)).folder.parent == tmp_path / "home" / ".cache" / "xftrain"
    assert f"XDG_CACHE_HOME={relative} is ignored, as the XDG specification says" in caplog.text
    assert not (folder / relative).exists()


def test_the_script_prepares_what_a_run_will_find(folder, cache_dir):
    script = Path(__file__).parents[2] / "scripts" / "prepare_text.py"

    def prepare_text(*arguments):
        command = [sys.executable, str(script), *arguments, "--cache-dir", str(cache_dir)]
        return subprocess.run(command, capture_output=True, text=True)

    done = prepare_text(str(folder), "--tokenizer", "bpe", "--vocab-size", "300")
    assert done.returncode == 0, done.stderr
    cache = prepare(str(folder), tokenizer="bpe", vocab_size=300, cache_dir=str(cache_dir))
    assert str(cache.folder) in done.stdout and cache.summary in done.stdout
    assert sum(path.is_dir() for path in cache_dir.iterdir()) == 1
    refused = prepare_text(str(folder / "nowhere"))
    assert refused.returncode == 2 and refused.stderr.startswith("data.path must be")
    assert "Traceback" not in refused.stderr
