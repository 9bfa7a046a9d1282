"""Safetensors files with a JSON header and a digest over both; loading one executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import replacing


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
    """Write a file; an interrupted write leaves no incomplete file under this name."""
    from safetensors.torch import save_file

    text, path = json.dumps(file.header), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(file.tensors, partial, {"format": file.kind, "header": text, "digest": digest(text, file.tensors)})
        partial.chmod(0o644)  # safetensors makes it readable for its owner alone


def read_tensors(path: str | Path, *kinds: str) -> TensorFile:
    """Read a file of one of these kinds and check its digest.

    Raises:
        UsageError: the file is missing, truncated, altered or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UsageError(f"no such calibration file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is truncated or no safetensors file: {error}") from None
    kind = metadata.get("format", "another")
    if kind not in kinds:
        raise UsageError(f"{path} is no {kinds[0]!r} file but {kind!r}")
    if metadata.get("digest") != digest(metadata.get("header", ""), tensors):
        raise UsageError(f"{path} was altered after it was written: its digest does not match", "calibrate again")
    return TensorFile(kind, json.loads(metadata["header"]), tensors)


def digest(header: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 digest of a header's text and of all tensors with their names."""
    sha = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].numpy().tobytes())
    return sha.hexdigest()
