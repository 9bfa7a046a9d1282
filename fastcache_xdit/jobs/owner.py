"""Who holds a claim: a name with a lock that the operating system lets go when its process dies, however it dies."""

from __future__ import annotations

import fcntl
import uuid
from pathlib import Path


class Owner:
    """Alive until `close`, or until the process is gone: no clock and no heartbeat says so, but a file lock.

    Args:
        folder: where locks lie; on a local disk, like the store.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / self.name
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def close(self) -> None:
        """Let go of everything that is claimed in this name."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def is_alive(folder: Path, name: str) -> bool:
    """Whether the process of this owner runs; the lock of a dead one is cleared away."""
    try:
        with (folder / name).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    (folder / name).unlink(missing_ok=True)
    return False
