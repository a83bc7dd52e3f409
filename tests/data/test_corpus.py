"""A corpus of files: which are listed, and how they are read."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.data.listed import list_files
from xftrain.data.corpus import files as corpus
from xftrain.data.corpus.files import Document, SourceFile, read_pieces
from xftrain.data.corpus.split import split_documents
from xftrain.data.tokens.content import DigestRecord
from xftrain.errors import ConfigError, RunError

NOWHERE = Path("/nonexistent")


def names_and_skipped(root):
    files, skipped = list_files(root, leave_out=NOWHERE, follow_links=True)
    return [file.name for file in files], dict(skipped)


def test_files_are_sorted_and_hidden_ones_passed_over(tmp_path):
    for name in ("b/z", "b/a", "a.txt", "c", ".git/config", "b/.hidden", "b/__pycache__/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "empty").touch()
    assert names_and_skipped(tmp_path) == (["a.txt", "b/a", "b/z", "c"], {"empty": 1})


def test_links_are_followed_once_and_circles_end(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "far").write_text("text")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "near").write_text("text")
    (root / "sub" / "up").symlink_to(root)  # a circle of folders
    (root / "itself").symlink_to(root / "itself")  # a circle of links
    (root / "gone").symlink_to(tmp_path / "nothing")
    (root / "twin").symlink_to(root / "sub" / "near")  # a second name for the same text
    os.link(root / "sub" / "near", root / "hard")
    (root / "more").symlink_to(tmp_path / "outside")
    assert names_and_skipped(root) == (["hard", "more/far"], {"repeated": 3, "unreadable": 2})


def test_a_corpus_that_is_a_link_is_said_with_its_place(tmp_path, caplog):
    (tmp_path / "private.txt").write_text("mine")
    (tmp_path / "corpus.txt").symlink_to(tmp_path / "private.txt")
    list_files(tmp_path / "corpus.txt", leave_out=tmp_path / "none")
    assert f"corpus.txt is a link: the files of {tmp_path}/private.txt are read" in caplog.text
    (tmp_path / "private" / "en").mkdir(parents=True)
    (tmp_path / "texts").symlink_to(tmp_path / "private")
    list_files(tmp_path / "texts" / "en", leave_out=tmp_path / "none")
    assert f"texts/en leads through a link: the files of {tmp_path}/private/en" in caplog.text
    caplog.clear()
    list_files(tmp_path / "corpus.txt", leave_out=tmp_path / "none", follow_links=True)
    list_files(tmp_path / "private.txt", leave_out=tmp_path / "none")
    assert not caplog.text


@pytest.mark.parametrize("named", ["texts", "texts/en", "{here}/texts/en"])
def test_a_link_of_the_working_folder_leads_to_no_corpus_outside_of_it(
    tmp_path, monkeypatch, named
):
    here = tmp_path / "clone"
    here.mkdir()
    (tmp_path / "private" / "en").mkdir(parents=True)
    (tmp_path / "private" / "en" / "key.txt").write_text("mine")
    (here / "texts").symlink_to(tmp_path / "private")
    (here / "own").mkdir()
    (here / "near").symlink_to("own")
    monkeypatch.chdir(here)
    path = Path(named.format(here=here))
    with pytest.raises(ConfigError, match=r"leads out of the working folder by a link, to .*priv"):
        list_files(path, leave_out=tmp_path / "none")
    list_files(path, leave_out=tmp_path / "none", follow_links=True)
    list_files(Path("near"), leave_out=tmp_path / "none")


def test_pipes_and_sockets_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path may not be long
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    assert names_and_skipped(tmp_path) == ([], {"special": 2})


def test_what_may_not_be_read_is_skipped(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text("text")
    # chmod keeps nothing from root, so the question itself is answered with no
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: allowed(path, mode) and path.name != "a")
    assert names_and_skipped(tmp_path) == (["b"], {"unreadable": 1})


@pytest.mark.parametrize("num_links", [1, 41, 3000])
def test_a_chain_of_links_is_followed_as_far_as_the_system_follows_it(tmp_path, num_links):
    # os.path.realpath ended in a RecursionError
    for number in range(num_links):
        (tmp_path / f"l{number}").symlink_to(f"l{number + 1}")
    (tmp_path / f"l{num_links}").write_text("text")
    names, skipped = names_and_skipped(tmp_path)
    assert f"l{num_links}" in names or skipped["repeated"]
    assert skipped.get("unreadable", 0) == max(0, num_links - 40)


@pytest.mark.parametrize("kind", ["gone", "empty", "link"])
def test_what_becomes_of_a_file_after_the_listing_is_a_sentence(tmp_path, kind):
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").write_text("more")
    files, _ = list_files(tmp_path, leave_out=NOWHERE)
    path = files[0].path
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "link":  # to what the user may read and the corpus may not
        path.symlink_to("/etc/hostname")
    with pytest.raises(RunError, match=r"^data\.path: "):
        list(read_pieces(split_documents(files[:1], 0.5)["train"][0]))


def test_links_that_lead_out_are_followed_only_where_that_is_asked_for(tmp_path):
    # a corpus from somebody else had the user's private files in it
    for name in ("private/key", "private/sub/key", "root/own/text"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    root = tmp_path / "root"
    (root / "a").symlink_to("../private/key")
    (root / "b").symlink_to(tmp_path / "private")
    (root / "c").symlink_to(root / "own")  # a link inside the folder
    (root / "own" / "d").symlink_to("../../private")
    files, skipped = list_files(root, leave_out=NOWHERE)
    assert [file.name for file in files] == ["c/text"]
    assert skipped == {"outside": 3, "repeated": 1}
    assert str(skipped).startswith("3 links out of the folder, 1 repeated file: a, b, ")
    files, _ = list_files(root, leave_out=NOWHERE, follow_links=True)
    assert [file.name for file in files] == ["a", "b/sub/key", "c/text"]


OUTPUTS = {
    "a run": {".hydra/config.yaml": "seq: 8"},
    "a sweep": {".sweep.json": "{}", "summary.csv": "job", "0_/metrics.csv": "step"},
    "a sweep of Hydra": {"multirun.yaml": "hydra:", "summary.md": "| job |"},
    "a job": {"xftrain.log": "[00:00:00] done", "stacks.txt": "File"},
    "a run without a log": {"config.yaml": "seq: 8", "metrics.csv": "step"},
    "a run that begins": {
        "config.yaml": "seq: 8\nbatch_tokens: 64\nmax_steps: 4\ntrainer: {}\ncallbacks: {}\n"
    },
    "a run that was refused": {
        "result.json": '{"status": "refused", "overrides": [], "run_dir": "x", "error": "y"}'
    },
    "a benchmark": {"rows.jsonl": "{}", "environment.json": "{}", "report.md": "# report"},
    "checkpoints": {"last.ckpt": "PK", "tokenizer.json": "{}"},
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_runs_are_no_corpus(tmp_path, kind):
    (tmp_path / "text").write_text("text")
    for name, content in OUTPUTS[kind].items():
        path = tmp_path / "outputs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert names_and_skipped(tmp_path) == (["text"], {"run folder": 1})


def test_what_only_looks_like_an_output_is_corpus(tmp_path):
    looks = {"result.json": '{"status": 1}', "config.yaml": "seq: 1", "results/metrics.csv": "a"}
    for name, content in looks.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert names_and_skipped(tmp_path) == (
        ["config.yaml", "result.json", "results/metrics.csv"],
        {},
    )


def test_what_this_command_prints_is_no_corpus(tmp_path):
    # `xftrain -m ... data.path=. > log.txt` gave each job of the sweep another corpus
    (tmp_path / "text").write_text("text")
    with open(tmp_path / "log.txt", "w") as log:
        log.write("one line")
        log.flush()
        before = os.dup(1)
        os.dup2(log.fileno(), 1)
        try:
            found = names_and_skipped(tmp_path)
        finally:
            os.dup2(before, 1)
            os.close(before)
    assert found == (["text"], {"run output": 1})


def test_the_first_few_that_are_skipped_are_named(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "\x1b[2J").touch()
    os.mkfifo(tmp_path / "pipe")
    skipped = list_files(tmp_path, leave_out=NOWHERE)[1]
    assert str(skipped) == "6 empty files, 1 special file: \\x1b[2J, 0.txt, 1.txt, ..., pipe"


@settings(deadline=None)
@given(st.text(min_size=1), st.floats(0.01, 0.99), st.integers(8, 40))
@example("漢" * 50, 0.5, 8)
@example("a" * 30 + "\n" + "b" * 90, 0.2, 16)
def test_one_file_is_cut_between_characters_and_read_back_whole(text, val_fraction, piece_bytes):
    content = text.encode()
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "PIECE_BYTES", piece_bytes)
        path = Path(scratch) / "file"
        path.write_bytes(content)
        split = split_documents([SourceFile("file", path, len(content))], val_fraction)
        pieces = {side: list(read_pieces(*split[side])) for side in split}
    for piece in pieces["train"] + pieces["val"]:
        assert 0 < len(piece) <= 2 * piece_bytes
        piece.decode()
    train, val = (b"".join(pieces[side]) for side in ("train", "val"))
    assert train + val == content
    assert -4 < len(val) - val_fraction * len(content) < 1


def test_a_folder_that_becomes_a_link_after_the_listing_is_not_followed(tmp_path):
    for folder in ("corpus/a", "private"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "notes.txt").write_text(folder)
    (file,), _ = list_files(tmp_path / "corpus", leave_out=tmp_path / "none")
    (tmp_path / "corpus" / "a").rename(tmp_path / "old")
    (tmp_path / "corpus" / "a").symlink_to(tmp_path / "private")
    for read in (
        lambda: DigestRecord(tmp_path / "record").digest_of(file),
        lambda: list(read_pieces(Document(file.path, 0, 6))),
        lambda: split_documents([file], 0.5),
    ):
        with pytest.raises(RunError, match="files must not change while they are read"):
            read()


def test_a_file_that_shrinks_meanwhile_is_reported(tmp_path):
    (tmp_path / "file").write_text("short")
    with pytest.raises(RunError, match="must not change while they are read"):
        list(read_pieces(Document(tmp_path / "file", 0, 6)))
    with pytest.raises(RunError, match="every listed file must stay readable"):
        list(read_pieces(Document(tmp_path / "gone", 0, 6)))
