"""Who holds a claim: a name with a lock that the operating system frees when its process dies, however it dies."""

from __future__ import annotations

import fcntl
import os
import re
import uuid
from pathlib import Path

from filelock import FileLock


class Owner:
    """A name whose lock is held until `close`, or until its process is gone.

    Args:
        folder: where locks lie; on a local disk, like the store.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / self.name
        self._lock = FileLock(self._path, thread_local=False)  # whichever thread closes it
        self._lock.acquire()

    def close(self) -> None:
        """Let go of everything that is claimed in this name."""
        self._lock.release()
        self._path.unlink(missing_ok=True)


def is_name(name: object) -> bool:
    """Tell whether this can be an owner's name, and is no path to anywhere else."""
    return isinstance(name, str) and re.fullmatch("[0-9a-f]{32}", name) is not None


def is_alive(folder: Path, name: str) -> bool:
    """Tell whether the process of this owner runs; nothing is written or removed."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove(folder: Path, name: str) -> None:
    """Remove the lock of an owner whose process is dead."""
    (folder / name).unlink(missing_ok=True)
