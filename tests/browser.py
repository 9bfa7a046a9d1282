"""Opens a page in a real browser, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--enable-logging=stderr"]
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium, to open the page")


def picture_of(page: Path, folder: Path, width: int, height: int) -> Image.Image:
    """What a window of this size shows of a page that has loaded, without a script's complaint."""
    picture = folder / "page.png"
    own = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", f"--screenshot={picture}"]
    words = [CHROMIUM, *FLAGS, *own, f"file://{page}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert "Uncaught" not in done.stderr
    image = Image.open(picture).convert("RGB")
    assert image.size == (width, height)
    return image
