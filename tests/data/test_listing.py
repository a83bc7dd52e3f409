"""Globs, lists of paths, and folders that `datasets` has saved."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.data.listed import list_files
from xftrain.data.corpus.listing import Listing
from xftrain.errors import ConfigError

NOWHERE = Path("/nonexistent")


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def names_and_skipped(root, follow_links=False):
    files, skipped = list_files(root, leave_out=NOWHERE, follow_links=follow_links)
    return [file.name for file in files], dict(skipped)


def test_a_glob_lists_what_it_matches_with_names_below_its_first_wildcard(tmp_path):
    make(tmp_path, "b/x.txt", "a/x.txt", "a/y.md", ".hid/x.txt", "a/.x.txt", "c/__pycache__/x.txt")
    assert names_and_skipped(tmp_path / "*" / "*.txt") == (["a/x.txt", "b/x.txt"], {})
    assert names_and_skipped(tmp_path / "a" / "[xy].*") == (["x.txt", "y.md"], {})
    # a folder that matches is walked, and what is below it is not listed again
    assert names_and_skipped(tmp_path / "**") == (["a/x.txt", "a/y.md", "b/x.txt"], {})
    assert names_and_skipped(tmp_path / "?") == (["a/x.txt", "a/y.md", "b/x.txt"], {})


def test_a_file_whose_name_has_wildcards_is_that_file(tmp_path):
    make(tmp_path, "[a].txt", "a.txt")
    assert names_and_skipped(tmp_path / "[a].txt") == (["[a].txt"], {})


def test_a_glob_without_a_match_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^data.path must match a file .*\*.txt', which matches"):
        names_and_skipped(tmp_path / "*.txt")


def test_a_glob_lists_no_outputs_and_no_links_that_lead_out(tmp_path):
    make(tmp_path, "private/key.txt", "root/own.txt", "root/run/xftrain.log", "root/run/a/b.txt")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "private")
    (tmp_path / "root" / "key.txt").symlink_to(tmp_path / "private" / "key.txt")
    names, skipped = names_and_skipped(tmp_path / "root" / "**" / "*.txt")
    assert names == ["own.txt"] and skipped == {"outside": 2, "run output": 1}
    names, _ = names_and_skipped(tmp_path / "root" / "*" / "*.txt", follow_links=True)
    assert names == ["link/key.txt"]


def test_of_several_paths_each_file_is_listed_once(tmp_path):
    make(tmp_path, "a/x.txt", "b/x.txt", "c.txt")
    listing = Listing(leave_out=NOWHERE, follow_links=False)
    roots = [tmp_path / "b", tmp_path / "c.txt", tmp_path / "*" / "*.txt", tmp_path / "c.txt"]
    files = listing.files_of(roots)
    assert [(file.name, file.path.parent.name) for file in files] == [
        ("x.txt", "b"),
        ("c.txt", tmp_path.name),
        ("a/x.txt", "a"),
    ]
    assert listing.skipped == {"repeated": 2}


def dataset(folder, names, state=None):
    make(folder, *names, "cache-123.arrow", "dataset_info.json")
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files} | (state or {})))


def test_of_a_dataset_the_files_that_its_state_names_are_read(tmp_path):
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    dataset(tmp_path / "train", names)
    dataset(tmp_path / "test", names[:1])
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    expected = [f"test/{names[0]}", *(f"train/{name}" for name in names)]
    assert names_and_skipped(tmp_path) == (expected, {})
    (tmp_path / "train" / names[0]).unlink()
    assert names_and_skipped(tmp_path / "train") == (names[1:], {"unreadable": 1})


@pytest.mark.parametrize("name", ["../key.arrow", "/etc/passwd", "sub/x.arrow", ".hidden", "", 7])
def test_a_dataset_does_not_lead_out_of_its_folder(tmp_path, name):
    make(tmp_path, "key.arrow")
    dataset(tmp_path / "set", [])
    (tmp_path / "set" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    files, skipped = names_and_skipped(tmp_path / "set")
    assert files == [] and sum(skipped.values()) == 1


def test_a_data_file_of_a_dataset_that_is_a_link_is_checked_as_any_other(tmp_path):
    make(tmp_path, "key.arrow")
    dataset(tmp_path / "set", ["data.arrow"])
    (tmp_path / "set" / "data.arrow").unlink()
    os.symlink("../key.arrow", tmp_path / "set" / "data.arrow")
    assert names_and_skipped(tmp_path / "set") == ([], {"outside": 1})


def test_a_dataset_with_indices_is_skipped_and_named(tmp_path):
    dataset(tmp_path, ["data.arrow"], {"_indices_data_files": [{"filename": "indices.arrow"}]})
    assert names_and_skipped(tmp_path) == ([], {"indexed dataset": 1})
