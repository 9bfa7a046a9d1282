"""The home: a folder of the user's in which calibrations are kept, one file for each model, for all processes."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from platformdirs import user_cache_dir

from fastcache_xdit.approx.calibration import FORMAT, Calibration
from fastcache_xdit.approx.identity import IDENTITY, fits
from fastcache_xdit.approx.tensor_file import read_header
from fastcache_xdit.errors import UsageError, one_line
from fastcache_xdit.files import checksum, remove_leftovers, replacing, writable_file

VARIABLE = "FASTCACHE_HOME"
SUFFIX = ".safetensors"
PATIENCE = 60.0  # seconds that a process waits for others that keep something, each of which takes a moment
Read = TypeVar("Read")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What is known of a kept calibration without reading its measurements.

    Attributes:
        name: its file's name without the ending.
        path: its file.
        identity: of its model, see `approx.identity`.
        facts: how it was learnt, see `Calibration`.
        steps: how many steps its requests had.
        size: in bytes.
        changed: when its file was written, in seconds since 1970.
    """

    name: str
    path: Path
    identity: dict[str, Any]
    facts: dict[str, Any]
    steps: int
    size: int
    changed: float

    @property
    def when(self) -> str:
        """Tell when it was learnt, as an ISO date: as its facts have it, or else when its file was written."""
        return str(self.facts.get("when") or datetime.fromtimestamp(self.changed).isoformat(timespec="seconds"))


class Home:
    """The calibrations in a folder, which any number of processes may read and write at the same time.

    Args:
        folder: default: the environment variable FASTCACHE_HOME, else the platform's cache folder.

    Attributes:
        calibrations: the folder in it with their files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        home = folder or os.environ.get(VARIABLE) or user_cache_dir("fastcache_xdit")
        self.calibrations = Path(os.path.expanduser(home)).absolute() / "calibrations"

    def find(self, identity: Mapping[str, Any]) -> Calibration | None:
        """Return the newest calibration of this model; None where there is none.

        A file that is truncated, altered or of another kind is logged once and never used.
        """
        for kept in self.listed():
            if fits(kept.identity, identity) and (found := _unless_broken(Calibration.load, kept.path)):
                return found
        return None

    def keep(self, calibration: Calibration) -> Path | None:
        """Write a calibration in the place of that of the same model, and return its file.

        A folder that cannot be written to is logged once, and None returned: a model runs as well without it.
        """
        try:
            self.calibrations.mkdir(parents=True, exist_ok=True)
            with FileLock(self.calibrations / ".lock", timeout=PATIENCE):
                remove_leftovers(self.calibrations)
                path = self._place(calibration.identity)
                calibration.save(path)
            return path
        except (OSError, NotImplementedError) as error:  # the second where a file system has no locks
            reason = getattr(error, "strerror", None) or error
            _warn(f"what was learnt is not kept in {self.calibrations}: {reason}; set {VARIABLE} to a folder for it")
            return None

    def listed(self) -> list[Kept]:
        """List what is kept, the newest first; files that are truncated or of another kind are logged once."""
        found = (_unless_broken(kept_at, self._path(name)) for name in self.names())
        return sorted((kept for kept in found if kept), key=lambda kept: kept.changed, reverse=True)

    def names(self) -> list[str]:
        """List the names of all files, whole or not; a folder that cannot be looked into has none."""
        try:
            return sorted(path.stem for path in self.calibrations.glob(f"*{SUFFIX}"))
        except OSError:
            return []

    def path_of(self, name: str) -> Path:
        """Return the file of this name, or of the only name that begins so.

        Raises:
            UsageError: there is none, or there are several.
        """
        names = self.names()
        begun = name.removesuffix(SUFFIX)
        found = [begun] if begun in names else [each for each in names if begun and each.startswith(begun)]
        if len(found) == 1:
            return self._path(found[0])
        if found:
            raise UsageError(f"{len(found)} calibrations begin with {name!r}", f"give one of {', '.join(found)}")
        there = f"there are {', '.join(names)}" if names else f"{self.calibrations} has none"
        raise UsageError(f"there is no calibration {name!r}", there)

    def remove(self, name: str) -> Path:
        """Remove one, whole or not, and return where it was. Raises UsageError as `path_of`, or where it cannot."""
        path = self.path_of(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"cannot remove {path}: {error.strerror}") from None
        return path

    def export(self, name: str, output: str | Path) -> Path:
        """Copy a calibration to a file and return it.

        Raises:
            UsageError: as `path_of`; or it is truncated or altered; or the file cannot be written.
        """
        path, file = self.path_of(name), writable_file(output)
        Calibration.load(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            shutil.copyfile(path, partial)
        return file

    def _path(self, name: str) -> Path:
        return self.calibrations / f"{name}{SUFFIX}"

    def _place(self, identity: Mapping[str, Any]) -> Path:
        """Return the file for a model: that of the same one, or the first free name, or one that holds no calibration.

        Other weights or weights of other blocks (a sharded model has none) are numbered beside it.
        """
        name = _name(identity)
        names = (f"{name}-{number}" if number > 1 else name for number in itertools.count(1))
        return next(path for path in map(self._path, names) if _may_hold(path, identity))


def kept_at(path: Path) -> Kept:
    """Read what is known of a calibration file. Raises UsageError as `read_header`."""
    header, status = read_header(path, FORMAT), path.stat()
    known = header["identity"], header["facts"], len(header["levels"])
    return Kept(path.stem, path, *known, status.st_size, status.st_mtime)


def _name(identity: Mapping[str, Any]) -> str:
    """Name a model: its class for people, and a digest of all but its weights, which are equal only up to rounding."""
    values = [identity.get(name) for name in IDENTITY if name != "weights"]
    digest = checksum(json.dumps(values, sort_keys=True).encode())
    family = re.sub(r"Transformer\dDModel$", "", str(identity.get("model")))
    return f"{re.sub(r'[^a-z0-9]+', '-', family.lower()).strip('-')}-{digest[:6]}"


def _may_hold(path: Path, identity: Mapping[str, Any]) -> bool:
    kept, weights = _unless_broken(kept_at, path), identity["weights"].keys()
    return kept is None or (fits(kept.identity, identity) and kept.identity["weights"].keys() == weights)


def _unless_broken(read: Callable[[Path], Read], path: Path) -> Read | None:
    """Read a file; None where it is no whole calibration of this version, which is logged, or is gone by now."""
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        if path.exists():
            problem = error.problem if isinstance(error, UsageError) else f"{path} is of another version ({error!r})"
            _warn(f"{problem}; it is not used: delete it (fastcache-xdit calibrations remove {path.stem})")
        return None


@lru_cache(maxsize=256)
def _warn(what: str) -> None:
    """Log a warning, once for each file or folder."""
    _log.warning("fastcache: %s", one_line(what))
