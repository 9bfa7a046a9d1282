"""Safetensors files with a JSON header and a digest over both; loading one executes nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastcache_xdit.approx.contents import check_tensors, told
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import write_whole


class TensorFile(NamedTuple):
    """The contents of a file.

    Attributes:
        kind: name and version of the format.
        header: values for JSON.
        tensors: tensors by name.
    """

    kind: str
    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def write_tensors(path: str | Path, file: TensorFile) -> None:
    """Write a file; an interrupted write leaves no incomplete file under this name.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    text, path = json.dumps(file.header), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # not save_file, which has a temporary file of its own that stays where a process is killed
    write_whole(path, save(file.tensors, {"format": file.kind, "header": text, "digest": digest(text, file.tensors)}))


def read_tensors(path: str | Path, *kinds: str) -> TensorFile:
    """Read a file of one of these kinds and check its digest.

    Raises:
        UsageError: the file is missing, truncated, altered or of another kind, or not all of its numbers are finite.
    """
    with _opened(path, kinds) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    if metadata.get("digest") != digest(metadata.get("header", ""), tensors):
        raise UsageError(f"{path} was altered after it was written: its digest does not match", "calibrate again")
    check_tensors(path, tensors)
    with told(path):
        return TensorFile(metadata["format"], json.loads(metadata["header"]), tensors)


def read_header(path: str | Path, *kinds: str) -> dict[str, Any]:
    """Read the header alone, which is fast; the digest, which is over the tensors too, is not checked.

    Raises:
        UsageError: the file is missing, truncated or of another kind.
    """
    with _opened(path, kinds) as (_, metadata):
        with told(path):
            header: dict[str, Any] = json.loads(metadata["header"])
        return header


@contextlib.contextmanager
def _opened(path: str | Path, kinds: Sequence[str]) -> Iterator[tuple[Any, dict[str, str]]]:
    """Open a file of one of these kinds and give it with its metadata."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UsageError(f"no such calibration file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if (kind := metadata.get("format", "another")) not in kinds:
                raise UsageError(f"{path} is no {kinds[0]!r} file but {kind!r}")
            yield file, metadata
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is truncated or no safetensors file: {error}") from None


def digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 digest of a header's text and of all tensors with their names."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].numpy().tobytes())
    return sha.hexdigest()
