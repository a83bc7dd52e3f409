"""A small corpus, and where its token files go."""

import pytest


@pytest.fixture
def folder(tmp_path):
    """Twenty small text files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02}.txt").write_text(f"{number} naïve words\n" * 9)
    return folder


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"
