"""Clips as mp4 files that browsers play, the same bytes every time."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

from fastcache_xdit.clips import Clip, frames_of
from fastcache_xdit.files import checksum

ROOT = Path(__file__).parents[1]
COLOURS = ((200, 30, 40), (255, 255, 255), (20, 200, 90), (0, 0, 0))


def clip(fps: int = 16) -> Clip:
    return Clip(tuple(Image.new("RGB", (32, 16), colour) for colour in COLOURS), fps)


def test_every_frame_is_there_in_its_colours_at_its_speed():
    with av.open(io.BytesIO(clip(8).mp4())) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.width, stream.height) == (8, 32, 16)
        frames = [np.asarray(frame.to_image(), dtype=int) for frame in file.decode(stream)]
    assert len(frames) == len(COLOURS)
    assert all(np.abs(frame - colour).max() <= 4 for frame, colour in zip(frames, COLOURS, strict=True))


def test_another_process_writes_the_same_bytes():
    script = "from tests.test_clips import clip, checksum; print(checksum(clip().mp4()))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    told = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == checksum(clip().mp4())


def test_an_image_is_its_own_only_frame():
    image = Image.new("RGB", (4, 4))
    assert frames_of(image) == (image,) and len(frames_of(clip())) == len(COLOURS)
