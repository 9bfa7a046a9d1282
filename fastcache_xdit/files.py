"""Files that are there whole or not at all, after a crash and after a loss of power; and where they can be written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from fastcache_xdit.errors import UsageError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another path to write a file at; at the end of the with block it takes the place of `path`.

    It is forced to disk first, and the exchange after. An exception inside leaves `path` as it was, and nothing beside
    it. Processes may replace a file at the same time: each has a path of its own, and the last one's file stays.
    """
    with beside(path) as partial:
        yield partial
        force_to_disk(partial)
        exchange(partial, path)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Make an empty file beside `path` whose name nobody can foresee; what is left of it in the end is removed."""
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
    try:
        yield partial
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not name the file
        raise
    finally:
        partial.unlink(missing_ok=True)


def exchange(partial: Path, path: Path) -> None:
    """Have a file take the place of another one, also after a loss of power."""
    os.replace(partial, path)
    force_to_disk(path.parent)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what processes that died while `replacing` files of this name, a pattern, left behind.

    Only for a caller who knows that nobody is writing such a file now.
    """
    for partial in folder.glob(f"{name}.*.partial"):
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by `replacing` it."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def force_to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, to disk, so that a loss of power does not undo them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(content: bytes) -> str:
    """Compute the SHA-256, as `sha256sum` prints it."""
    return hashlib.sha256(content).hexdigest()


def writable_file(path: str | Path) -> Path:
    """Return the path of a file that is to be written, its folders made by then.

    Raises:
        UsageError: it is a folder, or its folder cannot be written to.
    """
    file = Path(path)
    if file.is_dir():
        raise UsageError(f"cannot write {file}: it is a folder", "give the name of a file")
    _check_room(file.parent, file)
    return file


def writable_folder(path: str | Path) -> Path:
    """Return the path of a folder that is to be written to, made by then.

    Raises:
        UsageError: it is a file, or it cannot be written to.
    """
    folder = Path(path)
    _check_room(folder, folder)
    return folder


def _check_room(folder: Path, wanted: Path) -> None:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise UsageError(f"cannot write {wanted}: {there} is a file", "give another place")
    if not os.access(there, os.W_OK):
        raise UsageError(f"cannot write {wanted}: there is no permission to write in {there}", "give another place")
