"""Files that items are made from, such as an image to edit: checked at submit, kept in the job, read when it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fastcache_xdit.clips import read_frames
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import checksum, write_whole
from fastcache_xdit.jobs.item import Item
from fastcache_xdit.jobs.recipe import BadLine, PromptLine, bad_line

FOLDER = "inputs"
# By field of a line: the argument of the pipeline's call.
ARGUMENTS = {"image": "image", "mask": "mask_image", "video": "video", "control_image": "control_image"}
EXAMPLES = {  # of classes that take a field
    "mask": "FluxInpaintPipeline",
    "video": "WanVideoToVideoPipeline",
    "num_frames": "WanPipeline",
    "control_image": "FluxControlNetPipeline",
}


def with_files(line: PromptLine, prompts: Path) -> PromptLine | BadLine:
    """Make the paths of a line absolute, from the folder of its prompts file; a bad line where one cannot be read."""
    given = {field: path for field in ARGUMENTS if (path := getattr(line, field))}
    paths = {field: str(prompts.parent.resolve() / os.path.expanduser(path)) for field, path in given.items()}
    sizes: dict[str, tuple[int, int]] = {}
    for field, path in paths.items():
        try:
            _refuse_url(given[field])
            frames = _read(field, path)
            _check_length(line, field, frames)
            sizes[field] = frames[0].size
            _check_mask(sizes)
        except UsageError as error:
            return bad_line(line.prompt, f"{field} {given[field]}: {error}")
    return line.model_copy(update=paths)


def _refuse_url(path: str) -> None:
    if "://" in path:
        raise UsageError("URLs are not read", "download it first")


def _check_mask(sizes: dict[str, tuple[int, int]]) -> None:
    """Raise UsageError where a mask, scaled to its image's width, differs from its height by more than a pixel."""
    if "mask" not in sizes or "image" not in sizes:
        return
    (width, height), (mask_width, mask_height) = sizes["image"], sizes["mask"]
    if abs(mask_height * width - height * mask_width) > max(width, mask_width):
        raise UsageError(
            f"it has {mask_width} x {mask_height} pixels, and its image {width} x {height}",
            "give a mask of the image's aspect ratio",
        )


def fitting(line: PromptLine | BadLine, kind: str | None, takes: set[str]) -> PromptLine | BadLine:
    """Return a line whose fields the pipeline class `kind` takes, by what its call `takes`, or a bad one."""
    if isinstance(line, BadLine):
        return line
    takes = takes | ({"num_frames"} if "video" in takes else set())
    for field, argument in {**ARGUMENTS, "strength": "strength", "num_frames": "num_frames"}.items():
        if getattr(line, field) is not None and argument not in takes:
            example = EXAMPLES.get(field, "FluxImg2ImgPipeline")
            advice = f"leave it out, or name a class that takes it with --pipeline, such as {example}"
            return bad_line(line.prompt, f"{kind or 'a model without --pipeline'} takes no {field}; {advice}")
        if getattr(line, field) is None and field in ARGUMENTS and argument in takes:
            return bad_line(line.prompt, f"{kind} needs a file as {field} on each line")
    return line


def kept(items: Sequence[Item], folder: Path) -> list[Item]:
    """Copy the files of items into the job's folder, named by their contents: no later change touches the job."""
    return [item.model_copy(update={name: _copy(path, folder) for name, path in _files(item)}) for item in items]


def call_files(item: Item, folder: Path) -> dict[str, Any]:
    """Read what the pipeline's call gets of an item's files. Raises UsageError where one is gone or altered."""
    return {ARGUMENTS[field]: _opened(field, folder / path, item.num_frames) for field, path in _files(item)}


def _files(item: Item) -> list[tuple[str, str]]:
    """The fields of an item that name files; one that failed at submit has none."""
    if item.state == "failed":
        return []
    return [(field, path) for field in ARGUMENTS if (path := getattr(item, field))]


def _copy(path: str, folder: Path) -> str:
    content = Path(path).read_bytes()
    name = f"{FOLDER}/{checksum(content)}{Path(path).suffix}"
    if not (folder / name).is_file():
        (folder / FOLDER).mkdir(exist_ok=True)
        write_whole(folder / name, content)
    return name


def _opened(field: str, path: Path, num_frames: int | None) -> Any:
    if not path.is_file() or checksum(path.read_bytes()) != path.stem:
        raise UsageError(f"{path} is gone or altered", "submit the job again")
    frames = _read(field, str(path))
    return list(frames[:num_frames]) if field == "video" else frames[0]


def _read(field: str, path: str) -> tuple[Image.Image, ...]:
    """Read the frames of a clip, or an image as the only one."""
    if os.path.isdir(path):  # a Path's own question fails for names that are too long
        raise UsageError("this is a folder", "name one file in it for each line")
    if not os.path.isfile(path):
        raise UsageError("no such file", "paths begin at the folder of the prompts file")
    if field == "video":
        return read_frames(path)
    try:
        with Image.open(path) as image:
            return (_in_8_bits(ImageOps.exif_transpose(image)).convert("L" if field == "mask" else "RGB"),)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UsageError("not an image that can be read") from None


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Scale the grey values of 16 bits of depth maps; Pillow would cut them off at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def _check_length(line: PromptLine, field: str, frames: Sequence[Image.Image]) -> None:
    if field == "video" and len(frames) < (line.num_frames or 1):
        raise UsageError(f"it has {len(frames)} frames, fewer than num_frames={line.num_frames}")
