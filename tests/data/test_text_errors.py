import os

import pytest

from xftrain.data.text import Text
from xftrain.data.tokens.cache import prepare
from xftrain.errors import ConfigError


def make(root, kind):
    """A path that is no corpus."""
    path = root / "given"
    if kind in ("empty folder", "only hidden", "only binary", "only empty"):
        path.mkdir()
    if kind == "only hidden":
        (path / ".hidden").write_text("text")
    elif kind == "only binary":
        (path / "a").write_bytes(b"\0")
        (path / "b").write_bytes(b"\xff")
    elif kind == "only empty":
        (path / "a").touch()
    elif kind == "empty file":
        path.touch()
    elif kind == "binary file":
        path.write_bytes(b"\x7fELF\0")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to itself":
        path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "must be an existing file or folder of text, got .*No such file"),
        ("link to itself", "must be an existing file or folder of text, got "),
        ("empty file", "must be a readable file or folder of text, got .*which is empty"),
        ("pipe", "must be a readable file or folder .*neither a file nor a folder"),
        ("binary file", "must hold text .*skipped 1 binary file"),
        ("only binary", "must hold text .*skipped 2 binary files"),
        ("only empty", "must hold text .*skipped 1 empty file"),
        ("only hidden", "must hold text .*skipped no files"),
        ("empty folder", "must hold text .*skipped no files"),
    ],
)
def test_what_is_no_corpus_is_refused_in_one_sentence(tmp_path, cache_dir, kind, sentence):
    path = make(tmp_path, kind)
    with pytest.raises(ConfigError, match=f"^data.path {sentence}") as refused:
        prepare(str(path), cache_dir=str(cache_dir))
    message = str(refused.value)
    assert str(path) in message and "\n" not in message and message.count("; ") == 1


def test_a_cache_that_cannot_be_is_refused(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="^data.cache_dir must be a folder .*; choose another"):
        prepare(str(folder), cache_dir=str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize("home", [None, "", "~", "relative"])
def test_without_a_home_folder_the_cache_has_to_be_named(folder, tmp_path, monkeypatch, home):
    # a folder named ~ was made in the working folder
    def no_entry(number):
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", no_entry)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for options in ({}, {"cache_dir": "~/cache"}):
        with pytest.raises(ConfigError, match="^data.cache_dir ") as refused:
            prepare(str(folder), **options)
        assert "\n" not in str(refused.value)
    assert list((tmp_path / "work").iterdir()) == []
    with pytest.raises(ConfigError, match="^data.path names a home folder that is not there"):
        prepare("~nobody-here/text", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vocab_size": 300}, r"data.vocab_size must be 257 with data.tokenizer=bytes.*got 300"),
        (
            {"tokenizer": "bpe", "vocab_size": 256},
            r"data.vocab_size must be at least 257 with data.tokenizer=bpe.*got 256",
        ),
        ({"val_fraction": 0.0}, r"data.val_fraction must be above 0 .* got 0.0"),
        ({"val_fraction": 1.0}, r"data.val_fraction must be above 0 .* got 1.0"),
        ({"path": ""}, r"data.path must name a file or folder"),
        ({"seq": 10**6}, r"data.path must give at least 1000001 tokens to train on .* got \d+"),
        ({"seq": 1000}, r"data.path must give at least 1001 tokens held out .* got \d+ from"),
    ],
)
def test_wrong_options_are_one_sentence(folder, cache_dir, options, sentence):
    options = {"seq": 16, "path": str(folder), "cache_dir": str(cache_dir)} | options
    with pytest.raises(ConfigError, match=sentence) as refused:
        Text(options.pop("seq"), 4, 0, 1, **options)
    assert "\n" not in str(refused.value) and "; " in str(refused.value)


def test_two_separators_alone_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match="at least 3 tokens .* got 2"):
        Text(1, 1, 0, 1, path=str(tmp_path / "a.txt"), cache_dir=str(tmp_path / "cache"))
