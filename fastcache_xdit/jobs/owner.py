"""Who holds a claim: a name with a lock that the operating system frees when its process dies, however it dies."""

from __future__ import annotations

import uuid
from pathlib import Path

from filelock import FileLock, Timeout


class Owner:
    """A name that is alive until `close`, or until its process is gone; neither clock nor heartbeat decides that.

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


def is_alive(folder: Path, name: str) -> bool:
    """Tell whether the process of this owner runs; the lock of a dead one is removed."""
    path = folder / name
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(blocking=False):
            path.unlink(missing_ok=True)
    except Timeout:
        return True
    return False
