"""A cache folder that is damaged or that somebody else has filled: made again, or one sentence."""

import hashlib
import json
import logging
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from xftrain.data.text import Text
from xftrain.data.tokens import stream
from xftrain.data.tokens.cache import prepare
from xftrain.data.tokens.choice import choose_tokenizer
from xftrain.data.tokens.files import times_of
from xftrain.data.tokens.stream import read_tokenizer
from xftrain.data.tokens.tokenizer import Bpe
from xftrain.errors import ConfigError, RunError


def contents_of(folder):
    """All files but meta.json, which has times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "meta.json"}


def reseal(folder, change=lambda meta: None):
    """Makes all checksums right again, as whoever fills a cache folder can."""
    meta = json.loads((folder / "meta.json").read_text())["meta"]
    for name in meta["sha256"]:
        meta["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for split in ("train", "val"):
        tokens = folder / f"{split}.bin"
        meta[split]["sha256"] = hashlib.sha256(tokens.read_bytes()).hexdigest()
        meta["times_ns"][split] = times_of(tokens.stat())
    change(meta)
    sealed = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (folder / "meta.json").write_text(json.dumps({"meta": meta, "sha256": sealed}))


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def flip_byte(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def set_tokens(folder, value, at=5):
    tokens = np.fromfile(folder / "train.bin", "<u2")
    tokens[at] = value
    tokens.tofile(folder / "train.bin")


def set_boundaries(folder, change):
    boundaries = np.load(folder / "train.npy")
    change(boundaries)
    np.save(folder / "train.npy", boundaries)


def swap_boundaries(boundaries):
    boundaries[[2, 3]] = boundaries[[3, 2]]


def declare_shape(path, shape):
    """A header that declares an array of that shape, with hardly any data behind it."""
    with path.open("wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(64))


def replace_by_fifo(path):
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


class Trap:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickled(path):
    trap = np.array([Trap(path.parents[2] / "sprung")], dtype=object)
    np.save(path, trap, allow_pickle=True)


def tokens_of(meta, value):
    meta["train"]["tokens"] = value


# ---- as a bad disk does


DAMAGES = {
    "meta is gone": lambda d: (d / "meta.json").unlink(),
    "meta is empty": lambda d: (d / "meta.json").write_bytes(b""),
    "meta is no object": lambda d: (d / "meta.json").write_text("[1, 2]"),
    "meta is nested deeply": lambda d: (d / "meta.json").write_text("[" * 100_000),
    "a count in meta": lambda d: edit(d / "meta.json", b'"files": 1', b'"files": 9'),
    "tokens cut": lambda d: os.truncate(d / "train.bin", 100),
    "tokens gone": lambda d: (d / "val.bin").unlink(),
    "one token": lambda d: flip_byte(d / "train.bin", at=10),
    "boundaries": lambda d: flip_byte(d / "train.npy"),
    "bigram counts": lambda d: flip_byte(d / "bigram.npy"),
    "vocabulary": lambda d: flip_byte(d / "tokenizer.json"),
}
# ---- as somebody else can, with all sizes and checksums right
HOSTILE = {
    "a token outside the vocabulary": lambda d: set_tokens(d, 60_000),
    "the first outside the vocabulary": lambda d: set_tokens(
        d, Bpe.from_json((d / "tokenizer.json").read_text()).vocab_size
    ),
    "a document without a separator": lambda d: set_tokens(d, 7, at=0),
    "a boundary outside the tokens": lambda d: set_boundaries(d, lambda b: b.__setitem__(3, 9**9)),
    "a negative boundary": lambda d: set_boundaries(d, lambda b: b.__setitem__(0, -5)),
    "boundaries out of order": lambda d: set_boundaries(d, swap_boundaries),
    "boundaries of 8 TiB": lambda d: declare_shape(d / "train.npy", (2**40,)),
    "boundaries in two dimensions": lambda d: declare_shape(d / "train.npy", (4, 2)),
    "bigram counts of 8 TiB": lambda d: declare_shape(d / "bigram.npy", (2**20, 2**20)),
    "bigram counts of another shape": lambda d: np.save(d / "bigram.npy", np.zeros((3, 3), int)),
    "negative bigram counts": lambda d: np.save(d / "bigram.npy", np.full((257, 257), -9)),
    "a pickle": lambda d: pickled(d / "bigram.npy"),
    "a vocabulary with a regular expression": lambda d: edit(
        d / "tokenizer.json",
        b'"normalizer":null',
        b'"normalizer":{"type":"Replace","pattern":{"Regex":"(a+)+$"},"content":""}',
    ),
}
META = {
    "more tokens than the text can give": lambda m: tokens_of(m, 10**15),
    "a negative count": lambda m: tokens_of(m, -1),
    "a count that is a text": lambda m: tokens_of(m, "9" * 9),
    "a count that is true": lambda m: m["train"].update(files=True),
    "no split": lambda m: m.update(train=None),
    "no checksums": lambda m: m.update(sha256={}),
    "a checksum that is a number": lambda m: m["train"].update(sha256=7),
    "a name that is a number": lambda m: m["sha256"].update({"train.npy": 7}),
    "a time that is a text": lambda m: m["times_ns"].update(train="ab"),
    "more documents than files": lambda m: m["train"].update(documents=21),
    "fewer documents than files": lambda m: m["train"].update(documents=1),
    "no count of documents": lambda m: m["train"].pop("documents"),
    "a reason that is no text": lambda m: m.update(skipped=["binary"]),
    "a number of skipped files that is none": lambda m: m.update(skipped={"binary": "9"}),
    "a negative number of copies": lambda m: m.update(num_duplicates=-1),
    "one time of two": lambda m: m["times_ns"].update(train=[1]),
}
NAMES = ("meta.json", "train.bin", "train.npy", "bigram.npy", "tokenizer.json")
CASES = {
    **DAMAGES,
    **{name: lambda d, make=make: (make(d), reseal(d)) for name, make in HOSTILE.items()},
    **{name: lambda d, make=make: reseal(d, make) for name, make in META.items()},
    **{f"{n} as a FIFO": lambda d, n=n: replace_by_fifo(d / n) for n in NAMES},
    **{f"{n} as a link": lambda d, n=n: replace_by_link(d / n) for n in NAMES},
}


@pytest.mark.parametrize("case", CASES)
def test_token_files_that_are_not_as_written_are_made_again(folder, cache_dir, case, caplog):
    first = prepare(str(folder), tokenizer="bpe", cache_dir=str(cache_dir))
    sound = contents_of(first.folder)
    CASES[case](first.folder)
    again = prepare(str(folder), tokenizer="bpe", cache_dir=str(cache_dir))
    assert again.folder == first.folder
    assert contents_of(again.folder) == sound and again.digest == first.digest
    assert caplog.text.count("is damaged and is made again") == 1
    assert not (folder.parent / "sprung").exists()


@pytest.mark.parametrize("documents", [2**40, 2**60, 1])
def test_a_number_of_records_is_checked_against_the_boundaries(tmp_path, cache_dir, documents):
    lines = "".join(json.dumps({"text": f"record {number}"}) + "\n" for number in range(30))
    (tmp_path / "a.jsonl").write_text(lines)
    first = prepare(str(tmp_path / "a.jsonl"), cache_dir=str(cache_dir))
    reseal(first.folder, lambda meta: meta["train"].update(documents=documents))
    again = prepare(str(tmp_path / "a.jsonl"), cache_dir=str(cache_dir))
    assert again.documents == first.documents and again.digest == first.digest


def test_a_vocabulary_has_no_more_tokens_than_were_asked_for(folder, cache_dir):
    made = prepare(str(folder), tokenizer="bpe", cache_dir=str(cache_dir))
    content = (made.folder / "tokenizer.json").read_bytes()
    meta = SimpleNamespace(sha256={"tokenizer.json": hashlib.sha256(content).hexdigest()})
    size = made.tokenizer.vocab_size
    assert read_tokenizer(made.folder, choose_tokenizer("bpe", size), meta).vocab_size == size
    for smaller in (size - 1, 257):  # one by its number, one by the extent of the file
        with pytest.raises(ValueError, match="vocabulary"):
            read_tokenizer(made.folder, choose_tokenizer("bpe", smaller), meta)


def test_no_file_is_opened_because_meta_names_it(folder, cache_dir, caplog):
    # it named /dev/zero, of which 2.9 GiB were read
    first = prepare(str(folder), cache_dir=str(cache_dir))
    reseal(first.folder, lambda meta: meta["sha256"].update({"/nowhere/at/all": "x"}))
    again = prepare(str(folder), cache_dir=str(cache_dir))
    assert again.digest == first.digest and "is damaged" not in caplog.text


@pytest.mark.parametrize("keeps_times", [False, True])
def test_a_copied_cache_is_checked_and_used(folder, cache_dir, caplog, keeps_times):
    first = prepare(str(folder), cache_dir=str(cache_dir))
    for split in ("train", "val"):
        tokens = first.folder / f"{split}.bin"
        status = tokens.stat()
        os.utime(tokens, ns=(0, status.st_mtime_ns if keeps_times else 0))
    caplog.set_level(logging.INFO)
    again = prepare(str(folder), cache_dir=str(cache_dir))
    assert again.digest == first.digest and "is damaged" not in caplog.text
    assert caplog.text.count("checking the tokens of a copied or changed") == 2


def test_other_tokens_of_the_same_size_and_time_are_noticed(folder, cache_dir, caplog):
    """As `rsync -t` of another cache leaves them; only the modification time was looked at."""
    first = prepare(str(folder), cache_dir=str(cache_dir))
    tokens = first.folder / "train.bin"
    times = tokens.stat().st_atime_ns, tokens.stat().st_mtime_ns
    set_tokens(first.folder, ord("?"))
    os.utime(tokens, ns=times)
    again = prepare(str(folder), cache_dir=str(cache_dir))
    assert caplog.text.count("is damaged and is made again") == 1
    assert again.streams["train"].tokens[5] != ord("?")


@pytest.mark.parametrize("token", [257, 60_000])  # 256 is the last
def test_a_batch_never_has_tokens_outside_the_vocabulary(folder, cache_dir, monkeypatch, token):
    # of files too large to be checked as a whole: an embedding on a GPU would read elsewhere
    monkeypatch.setattr(stream, "_CHECKED_BYTES", 0)
    options = {"path": str(folder), "cache_dir": str(cache_dir)}
    data = Text(8, 2, 0, 1, **options)
    tokens = np.fromfile(data._cache.folder / "train.bin", "<u2")
    np.full_like(tokens, token).tofile(data._cache.folder / "train.bin")
    reseal(data._cache.folder)
    with pytest.raises(RunError, match=r"data.cache_dir: .* are damaged.*delete that folder"):
        Text(8, 2, 0, 1, **options).batch("train", 0)


# ---- whose folder it is


def test_a_link_in_place_of_the_folder_is_refused(folder, cache_dir, tmp_path):
    first = prepare(str(folder), cache_dir=str(cache_dir)).folder
    shutil.move(first, tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"^data.cache_dir: .* a folder that this user has made"):
        prepare(str(folder), cache_dir=str(cache_dir))
    assert (tmp_path / "elsewhere" / "train.bin").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_folder_of_another_user_is_refused(folder, cache_dir):
    first = prepare(str(folder), cache_dir=str(cache_dir)).folder
    os.chown(first, 54321, 54321)
    with pytest.raises(ConfigError, match=r"^data.cache_dir: .* a folder that this user has made"):
        prepare(str(folder), cache_dir=str(cache_dir))


def test_nobody_else_may_read_what_was_read_of_the_corpus(folder, cache_dir):
    first = prepare(str(folder), cache_dir=str(cache_dir)).folder
    assert first.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_lock_that_is_no_file_is_refused_and_left_alone(folder, cache_dir, tmp_path, kind):
    # it was opened for writing, which emptied the file behind a link
    first = prepare(str(folder), cache_dir=str(cache_dir)).folder
    shutil.rmtree(first)
    (lock,) = cache_dir.glob(".*.lock")
    lock.unlink()
    (tmp_path / "victim").write_text("precious")
    os.mkfifo(lock) if kind == "FIFO" else lock.symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError, match="^data.cache_dir must be a folder .*not a plain file"):
        prepare(str(folder), cache_dir=str(cache_dir))
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_lock_of_another_user_is_refused(folder, cache_dir, monkeypatch):
    # who made it could hold it for ever
    first = prepare(str(folder), cache_dir=str(cache_dir)).folder
    shutil.rmtree(first)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr("xftrain.data.tokens.cache_folder._owner_of_new_files", lambda _: 4242)
    with pytest.raises(ConfigError, match="^data.cache_dir: the lock .* is another user's"):
        prepare(str(folder), cache_dir=str(cache_dir))
