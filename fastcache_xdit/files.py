"""Files that are there whole or not at all, after a crash and after a loss of power."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another path to write a file at; at the end of the with block it takes the place of `path`.

    It is forced to disk first, and the exchange after. An exception inside leaves `path` as it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    force_to_disk(partial)
    os.replace(partial, path)
    force_to_disk(path.parent)


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
