"""The folder that a job writes: images as they come, then summary.json and report.html."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fastcache_xdit.clips import Clip
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_folder

WRITTEN = re.compile(r"\d{5}(_[a-z]+)?\.(png|mp4)")


class OutputFolder:
    """Where a job writes `images/00012.png` and, if it compares, `images/00012_uncached.png`; clips as `.mp4`.

    Raises:
        UsageError: the folder cannot be written to, or holds what an earlier job left, and `overwrite` is not set.
    """

    def __init__(self, path: str | Path, overwrite: bool) -> None:
        self.path = writable_folder(path)
        self.summary = self.path / "summary.json"
        if overwrite:
            return
        if self.summary.exists():
            raise UsageError(f"{self.path} holds the results of an earlier job", "pass --overwrite or another --output")
        if any(self._images()):
            problem = f"{self.path} holds pictures of a job that was interrupted"
            raise UsageError(problem, "pass --overwrite or another --output")

    def clear(self) -> None:
        """Remove what an earlier job left, so that its pictures do not mix with those of this one."""
        for file in (*self._images(), self.summary, self.path / "report.html"):
            file.unlink(missing_ok=True)

    def _images(self) -> list[Path]:
        """List the files that `keep` wrote."""
        return [file for file in (self.path / "images").glob("*") if WRITTEN.fullmatch(file.name)]

    def keep(self, kind: str, index: int, image: Any) -> None:
        """Save one image or clip at once, so that an interrupted job loses none."""
        suffix = "" if kind == "cached" else f"_{kind}"
        folder = self.path / "images"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{index:05d}{suffix}"
        if isinstance(image, Clip):
            (folder / f"{name}.mp4").write_bytes(image.mp4())
        else:
            image.save(folder / f"{name}.png")

    def write_summary(self, figures: dict[str, Any]) -> None:
        """Write `summary.json`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.summary.write_text(json.dumps(figures, indent=2) + "\n")
