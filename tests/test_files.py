"""Where files can be written is known before there is anything to write."""

from __future__ import annotations

import pytest

from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import remove_leftovers, replacing, writable_file, writable_folder


def test_a_file_replaces_another_whole_or_not_at_all(tmp_path):
    file = tmp_path / "figures.json"
    with replacing(file) as partial:
        partial.write_text("first")
    with pytest.raises(ValueError), replacing(file) as partial:
        partial.write_text("half")
        raise ValueError
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file], "nothing is left beside it"


def test_two_at_once_do_not_meet(tmp_path):
    file = tmp_path / "figures.json"
    with replacing(file) as one, replacing(file) as two:
        one.write_text("one")
        two.write_text("two")
    assert file.read_text() == "one", "the last one's"
    assert list(tmp_path.iterdir()) == [file]


def test_what_the_dead_left_is_removed_by_name(tmp_path):
    kept = [tmp_path / name for name in ("a.json", "a.partial", "b.json.0123.partial")]
    for file in (*kept, tmp_path / "a.json.0123.partial"):
        file.write_text("")
    remove_leftovers(tmp_path, "a.json")
    assert sorted(tmp_path.iterdir()) == sorted(kept)


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
