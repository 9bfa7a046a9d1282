"""Names and layout of moments and maps in a calibration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastcache_xdit.approx.fitted import Refitted
from fastcache_xdit.approx.maps import Maps
from fastcache_xdit.approx.moments import Halves, Moments

MomentsBySegment = dict[str, dict[str, Halves]]  # by key of the segment, and stream
MapsBySegment = dict[str, dict[str, Maps]]
# Names of tensors in a file, by field of `Maps`.
MAP_NAMES = {
    "diagonal": "diagonal",
    "matrix": "matrix",
    "entered": "entered",
    "residual": "left",
    "deviation": "spread",
}


def pack_moments(moments: Mapping[str, Mapping[str, Halves]]) -> dict[str, torch.Tensor]:
    """Return moments as float32 tensors named `segment/stream/half`."""
    return {
        f"{segment}/{stream}/{half}": half_moments.packed()
        for segment, streams in moments.items()
        for stream, halves in streams.items()
        for half, half_moments in halves._asdict().items()
    }


def unpack_moments(sigmas: Sequence[float], tensors: Mapping[str, torch.Tensor]) -> MomentsBySegment:
    """Return the moments that `pack_moments` packed; other tensors are ignored."""
    moments: MomentsBySegment = {}
    for name in tensors:
        segment, stream, half = name.split("/")
        if half == "training":
            packed = (tensors[f"{segment}/{stream}/{half}"] for half in Halves._fields)
            moments.setdefault(segment, {})[stream] = Halves(
                *(Moments.unpacked(sigmas, triangles) for triangles in packed)
            )
    return moments


def pack_maps(maps: Mapping[str, Mapping[str, Maps]]) -> dict[str, torch.Tensor]:
    """Return maps as float32 tensors named `segment/stream/maps.name`; the large matrices as float16."""
    return {
        f"{segment}/{stream}/maps.{name}": _narrow(field, getattr(stream_maps, field))
        for segment, streams in maps.items()
        for stream, stream_maps in streams.items()
        for field, name in MAP_NAMES.items()
    }


def unpack_maps(tensors: Mapping[str, torch.Tensor]) -> MapsBySegment:
    """Return the maps that `pack_maps` packed; other tensors are ignored."""
    maps: MapsBySegment = {}
    for name in tensors:
        segment, stream, kind = name.split("/")
        if kind == "maps.matrix":
            parts = {field: tensors[f"{segment}/{stream}/maps.{name}"] for field, name in MAP_NAMES.items()}
            maps.setdefault(segment, {})[stream] = Maps(**parts)
    return maps


def pack_refits(refits: Mapping[Refitted, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return refitted coefficients as tensors named by their place in the list of keys."""
    return {f"refits/{number}/coefficients": refit.contiguous() for number, refit in enumerate(refits.values())}


def unpack_refits(keys: Sequence[Any], tensors: Mapping[str, torch.Tensor]) -> dict[Refitted, torch.Tensor]:
    """Return the coefficients that `pack_refits` packed, by their keys as they are after JSON."""
    names = [
        Refitted(segment, form, tuple(sigmas), stream, step, tuple(computed))
        for segment, form, sigmas, stream, step, computed in keys
    ]
    # In files of refits alone, which need no other names, tensors have the bare number.
    found = (tensors.get(f"refits/{number}/coefficients", tensors.get(str(number))) for number in range(len(names)))
    return {name: refit for name, refit in zip(names, found, strict=True) if refit is not None}


def _narrow(field: str, values: torch.Tensor) -> torch.Tensor:
    return values.half() if field == "matrix" else values.float()
