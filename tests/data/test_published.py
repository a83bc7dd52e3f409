"""The beginnings of token files are checked, as a machine may have lost power meanwhile."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from xftrain.data.tokens import cache, chunks, files, published
from xftrain.data.tokens.tokenizer import Bytes


def zeros(path):
    with path.open("r+b") as file:
        file.seek(200)
        file.write(bytes(400))


DAMAGES = {
    "tokens that were never written": lambda folder: zeros(folder / "train.bin"),
    "boundaries that were never written": lambda folder: zeros(folder / "train.npy"),
    "cut": lambda folder: os.truncate(folder / "train.bin", 100),
    "without tokens": lambda folder: (folder / "val.bin").unlink(),
}


@pytest.fixture
def beginnings(tmp_path, monkeypatch):
    """Copies of a folder at two moments of its preparation."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 20_000)
    for name in "ab":
        texts = [f"document {number} of {name} " * 20 for number in range(200)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}{name}.jsonl").write_text(lines)
    copies = []

    def publish(folder, sizes):
        published.publish(folder, sizes)
        copies.append(shutil.copytree(folder, tmp_path / f"copy{len(copies)}"))

    monkeypatch.setattr(files, "publish", publish)
    paths = [str(tmp_path / "aa.jsonl"), str(tmp_path / "bb.jsonl")]
    cache.prepare(paths, cache_dir=str(tmp_path / "cache"), num_workers=0)
    return copies


def read(verified, folder):
    return verified.read(folder, Bytes(), published.read_sizes(folder))


def test_a_beginning_that_has_grown_is_read(beginnings):
    verified = published.Verified()
    first, last = (read(verified, folder)["train"] for folder in (beginnings[0], beginnings[-1]))
    assert 2 < first.tokens.size < last.tokens.size
    assert last.tokens[: first.tokens.size].tolist() == first.tokens.tolist()
    assert last.boundaries[: first.boundaries.size].tolist() == first.boundaries.tolist()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_beginning_that_is_damaged_is_not_read(beginnings, damage):
    verified = published.Verified()
    DAMAGES[damage](beginnings[0])
    with pytest.raises((OSError, ValueError)):
        read(verified, beginnings[0])
    assert read(verified, beginnings[-1])["val"].tokens.size > 2
