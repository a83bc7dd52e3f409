"""Files of a corpus by content: which are text, which are copies, and which have changed."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.listed import list_files
from xftrain.data.corpus.files import Document, SourceFile, read_pieces
from xftrain.data.corpus.skipped import Skipped
from xftrain.data.tokens import content
from xftrain.data.tokens.cache import prepare
from xftrain.data.tokens.content import ContentCheck, DigestRecord, TextFile, distinct_texts
from xftrain.errors import RunError
from xftrain.utils import change_times

NOWHERE = Path("/nonexistent")


def digest_of(path, record=NOWHERE):
    return DigestRecord(record).digest_of(SourceFile("file", path, path.stat().st_size))


# ---- what text is


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain", True),
        ("naïve 漢字".encode(), True),
        (b"a" * 8191 + b"\0", False),
        (b"a" * 8192 + b"\0", False),  # the rule looked at 8 KiB
        (b"a" * (3 << 20) + b"\0", False),  # late
        (b"a\xff", False),
        (b"a" * 100 + "漢".encode()[:2], False),  # half a character at the end
        (b"a" * ((1 << 20) - 1) + "漢".encode(), True),  # a character across two reads
        (b"a" * (3 << 20) + b"\xff", False),  # late
        ("latin-1 caf\xe9".encode("latin-1"), False),
        ("utf-16".encode("utf-16"), False),
    ],
)
def test_text_is_valid_utf8_without_nul(tmp_path, content, expected):
    (tmp_path / "file").write_bytes(content)
    assert (digest_of(tmp_path / "file") is not None) is expected


@pytest.mark.timeout(20)
def test_a_sparse_file_of_terabytes_is_binary_at_once(tmp_path):
    # its hole was read to the end, and every NUL of it was to be a token
    with (tmp_path / "file").open("wb") as file:
        file.write(b"hello world\n" * 1000)
        file.truncate(8 << 40)
    assert digest_of(tmp_path / "file") is None


def test_a_fifo_that_comes_after_the_listing_is_not_waited_for(tmp_path):
    # both opened by name, which waits for a writer for ever
    (tmp_path / "file").write_text("text")
    (file,), _ = list_files(tmp_path, leave_out=NOWHERE)
    file.path.unlink()
    os.mkfifo(file.path)
    for read in (
        lambda: DigestRecord(NOWHERE).digest_of(file),
        lambda: list(read_pieces(Document(file.path, 0, 4))),
    ):
        with pytest.raises(RunError, match="every listed file must stay readable"):
            read()


# ---- what has changed


def replace(path, text, how):
    """Puts other text of the same size and modification time in place of a file's."""
    before = path.stat()
    if how == "in place":
        path.write_text(text)
    elif how == "renamed":  # as rsync does
        path.with_name("new").write_text(text)
        path.with_name("new").rename(path)
    else:
        path.unlink()
        path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("how", ["in place", "renamed", "made anew"])
@pytest.mark.parametrize("settled", [False, True])
def test_other_text_of_the_same_size_and_time_is_trained_on(
    folder, cache_dir, monkeypatch, how, settled
):
    """The old text was trained on, and a resumed run said that its data was the same."""
    if settled:  # so that the first start records digests
        monkeypatch.setattr(change_times, "_SETTLED_NS", -1)
    before = prepare(str(folder), cache_dir=str(cache_dir))
    texts = {path: path.read_text() for path in folder.iterdir()}
    for path, text in texts.items():
        replace(path, text.replace("words", "verbs"), how)
    after = prepare(str(folder), cache_dir=str(cache_dir))
    assert after.digest != before.digest
    assert b"words" not in bytes(after.streams["train"].tokens[1:-1].astype("u1"))
    for path, text in texts.items():
        replace(path, text, how)
    again = prepare(str(folder), cache_dir=str(cache_dir))
    assert (again.digest, again.folder) == (before.digest, before.folder)


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="where the file system is known")
def test_settled_files_are_read_once(folder, cache_dir, monkeypatch):
    if not reliable(folder):
        pytest.skip("the file system of the tests has no reliable change times")
    (folder / "binary").write_bytes(b"\0")
    read = []
    digest = content._digest
    monkeypatch.setattr(
        content, "_digest", lambda file, stream: read.append(file.name) or digest(file, stream)
    )
    for num_read in (21, 21):  # files that have just been written are read again
        prepare(str(folder), cache_dir=str(cache_dir))
        assert len(read) == num_read
        read.clear()
    monkeypatch.setattr(change_times, "_SETTLED_NS", -1)
    prepare(str(folder), cache_dir=str(cache_dir))
    read.clear()
    first = prepare(str(folder), cache_dir=str(cache_dir))
    assert read == [] and "skipped 1 binary file: binary" in first.summary
    os.utime(folder / "07.txt", ns=(0, 0))
    again = prepare(str(folder), cache_dir=str(cache_dir))
    assert read == ["07.txt"] and again.folder == first.folder


def reliable(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return change_times.has_change_times(descriptor)
    finally:
        os.close(descriptor)


def test_a_file_system_without_times_of_change_is_read_at_each_start(
    folder, cache_dir, monkeypatch, caplog
):
    # FUSE shows the modification time in place of the ctime, so it tells nothing more
    monkeypatch.setattr(change_times, "_SETTLED_NS", -1)
    monkeypatch.setattr(content, "has_change_times", lambda _: False)
    monkeypatch.setattr(content, "_LOGGED_BYTES", 100)
    caplog.set_level(logging.INFO)
    for _ in range(2):
        prepare(str(folder), cache_dir=str(cache_dir))
    assert caplog.text.count("because their file system has no reliable change times") == 2
    assert not list(cache_dir.glob(".*.digests"))


def test_memory_and_foreign_file_systems_have_no_reliable_times():
    assert not reliable("/proc/self/status")
    if Path("/dev/shm").is_dir():
        assert not reliable("/dev/shm")


@pytest.mark.parametrize("damage", ["cut", "flipped", "link", "FIFO", "folder"])
def test_a_record_that_is_not_as_written_counts_as_empty(
    folder, cache_dir, tmp_path, monkeypatch, damage
):
    monkeypatch.setattr(change_times, "_SETTLED_NS", -1)
    monkeypatch.setattr(content, "has_change_times", lambda _: True)
    first = prepare(str(folder), cache_dir=str(cache_dir))
    (record,) = cache_dir.glob(".*.digests")
    assert record.stat().st_mode & 0o077 == 0
    whole = record.read_bytes()
    if damage == "cut":
        record.write_bytes(whole[:-1])
    elif damage == "flipped":
        record.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        record.unlink()
        if damage == "link":
            shutil.copy(first.folder / "meta.json", tmp_path / "elsewhere")
            record.symlink_to(tmp_path / "elsewhere")
        elif damage == "FIFO":
            os.mkfifo(record)
        else:
            record.mkdir()
    again = prepare(str(folder), cache_dir=str(cache_dir))
    assert again.digest == first.digest
    assert damage == "folder" or record.read_bytes() == whole


def test_a_record_of_another_user_counts_as_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "has_change_times", lambda _: True)
    monkeypatch.setattr(change_times, "_SETTLED_NS", -1)
    (tmp_path / "file").write_text("text")
    record = DigestRecord(tmp_path / "record")
    digest_of_file = record.digest_of(SourceFile("file", tmp_path / "file", 4))
    record.save()
    assert list(DigestRecord(tmp_path / "record")._recorded.values()) == [digest_of_file]
    assert DigestRecord(tmp_path / "record", max_files=0)._recorded == {}
    monkeypatch.setattr(content, "is_owner", lambda *_: False)
    assert DigestRecord(tmp_path / "record")._recorded == {}


# ---- what changes meanwhile


@pytest.mark.parametrize("cut", [2, 4])
def test_text_that_changes_before_it_is_tokenized_is_noticed(tmp_path, cut):
    path = tmp_path / "file"
    path.write_text("text")
    text = TextFile("file", path, 4, digest_of(path))
    path.write_text("tex!")
    check = ContentCheck([text])
    with pytest.raises(RunError, match="files must not change while they are read"):
        for document in (Document(path, 0, cut), Document(path, cut, 4)):
            list(check.verify_pieces(document, read_pieces(document)))


def test_a_file_that_grows_is_read_as_far_as_it_was_listed(tmp_path):
    (tmp_path / "file").write_text("text")
    (file,), _ = list_files(tmp_path, leave_out=NOWHERE)
    before = digest_of(file.path)
    with file.path.open("a") as log:
        log.write(" and more")
    assert DigestRecord(NOWHERE).digest_of(file) == before
    file.path.write_text("te漢")
    with pytest.raises(RunError, match="files must not change while they are read"):
        DigestRecord(NOWHERE).digest_of(file)  # cut within a character


# ---- copies


texts = st.dictionaries(
    st.text("abcdef", min_size=1), st.sampled_from(["x", "y", "zz"]), min_size=1
)


@settings(deadline=None, max_examples=30)
@given(texts)
def test_of_copies_the_first_by_name_is_read(named):
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in named.items():
            Path(scratch, name).write_text(text)
        files, skipped = list_files(Path(scratch), leave_out=NOWHERE)
        found = distinct_texts(files, DigestRecord(NOWHERE), skipped)
    first = {text: name for name, text in sorted(named.items(), reverse=True)}
    assert {file.name for file in found} == set(first.values())
    assert skipped["repeated"] == len(named) - len(first)


def test_no_text_is_trained_on_and_held_out(folder, cache_dir):
    """Copies of one text were on both sides, although repeated files are said to be skipped."""
    for number in range(30):
        shutil.copy(folder / "03.txt", folder / f"copy{number}.txt")
    cache = prepare(str(folder), cache_dir=str(cache_dir), val_fraction=0.5)
    held = {
        split: bytes(cache.streams[split].tokens.clip(0, 255).astype("u1"))
        for split in ("train", "val")
    }
    text = (folder / "03.txt").read_bytes()
    assert sum(held[split].count(text) for split in held) == 1
    assert "skipped 30 repeated files: copy0.txt" in cache.summary


def test_a_copied_or_moved_corpus_has_the_same_token_files(folder, cache_dir, tmp_path):
    first = prepare(str(folder), cache_dir=str(cache_dir))
    shutil.copytree(folder, tmp_path / "copy")
    assert prepare(str(tmp_path / "copy"), cache_dir=str(cache_dir)).folder == first.folder


def test_skipped_files_are_counted_once(folder):
    (folder / "binary").write_bytes(b"\0")
    skipped = Skipped()
    files, _ = list_files(folder, leave_out=NOWHERE)
    assert len(distinct_texts(files, DigestRecord(NOWHERE), skipped)) == 20
    assert dict(skipped) == {"binary": 1}
