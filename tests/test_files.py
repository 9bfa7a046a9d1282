"""Where files can be written is known before there is anything to write."""

from __future__ import annotations

import pytest

from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import replacing, writable_file, writable_folder


def test_a_file_replaces_another_whole_or_not_at_all(tmp_path):
    file = tmp_path / "figures.json"
    with replacing(file) as partial:
        partial.write_text("first")
    with pytest.raises(ValueError), replacing(file) as partial:
        partial.write_text("half")
        raise ValueError
    assert file.read_text() == "first"


def test_folders_that_are_not_there_yet_are_fine(tmp_path):
    assert writable_file(tmp_path / "a" / "b" / "c.txt").name == "c.txt"
    assert writable_folder(tmp_path / "a" / "b").name == "b"


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="it is a folder; give the name of a file"):
        writable_file(tmp_path)
    for refused in (writable_file(tmp_path / "file").parent / "file" / "c.txt", tmp_path / "file"):
        with pytest.raises(UsageError, match="file is a file; give another place"):
            writable_folder(refused)
