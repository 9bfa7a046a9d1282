"""Clips: frames that are shown one after the other, and the mp4 files that they are kept in."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fastcache_xdit.errors import UsageError

NOT_FINITE = "the image is not finite (NaN or infinite latents); lower guidance, or use another dtype"
# One thread and no tags: the same frames give the same bytes. 39 dB on drawn clips, as many as without quantization:
# what is lost is lost by halving the colour planes.
ENCODER = {"crf": "18", "threads": "1"}
BT709 = 1  # as FFmpeg counts colour spaces, primaries and transfers
LIMITED_RANGE = 1


@dataclass(frozen=True)
class Clip:
    """Frames as they were generated.

    Attributes:
        frames: PIL images of one size, an even number of pixels wide and high.
        fps: how many are shown in a second.
    """

    frames: tuple[Image.Image, ...]
    fps: int

    def mp4(self) -> bytes:
        """Encode as H.264 in an mp4 file that browsers play; lossy, and the same bytes for the same frames."""
        import av

        file = io.BytesIO()
        with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream("libx264", rate=self.fps, options=ENCODER)
            stream.width, stream.height = self.frames[0].size
            _describe(stream)
            for frame in self.frames:
                container.mux(stream.encode(_halved_colours(av.VideoFrame.from_image(frame.convert("RGB")))))
            container.mux(stream.encode())
        return file.getvalue()


def read_frames(file: str | Path) -> tuple[Image.Image, ...]:
    """Read the frames of a clip in any format that FFmpeg knows. Raises UsageError where it is none."""
    import av

    try:
        with av.open(str(file)) as container:
            frames: tuple[Image.Image, ...] = tuple(frame.to_image() for frame in container.decode(video=0))
    except (av.FFmpegError, OSError, IndexError, ValueError):
        frames = ()
    if not frames:
        raise UsageError("not a clip that can be read")
    return frames


def frames_of(picture: Any) -> Sequence[Image.Image]:
    """Return the frames of a clip; an image is its own only one."""
    return picture.frames if isinstance(picture, Clip) else (picture,)


def _describe(stream: Any) -> None:
    """Name the colours that frames are coded in: players guess otherwise, and not all alike."""
    stream.pix_fmt = "yuv420p"  # the only one that all browsers play
    codec = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = BT709
    codec.color_range = LIMITED_RANGE


def _halved_colours(frame: Any) -> Any:
    return frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")


def pictured(values: torch.Tensor, fps: int) -> Image.Image | Clip:
    """Make an image of [3, H, W], or a clip of [F, 3, H, W], in 0..1; rounded as diffusers does."""
    if values.ndim == 4:
        return Clip(tuple(map(_image, values)), fps)
    return _image(values)


def _image(values: torch.Tensor) -> Image.Image:
    # what is not finite is black, as diffusers has it
    pixels = values.float().nan_to_num(0, 1, 0).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray((pixels * 255).round().astype("uint8"))
