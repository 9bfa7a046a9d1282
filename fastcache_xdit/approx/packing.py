"""How moments and maps are named and packed in a calibration file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fastcache_xdit.approx.fitted import Halves
from fastcache_xdit.approx.maps import Maps
from fastcache_xdit.approx.moments import Moments

MomentsBySegment = dict[str, dict[str, Halves]]  # by segment and stream
MapsBySegment = dict[str, dict[str, Maps]]
# Names of tensors in a file, by field of `Maps`.
MAP_NAMES = {"diagonal": "diagonal", "matrix": "matrix", "entered": "entered", "residual": "left", "spread": "spread"}


def pack_moments(moments: Mapping[str, Mapping[str, Halves]]) -> dict[str, torch.Tensor]:
    """Return float32 tensors by name, `segment/stream/half`."""
    return {
        f"{segment}/{stream}/{half}": half_moments.packed()
        for segment, streams in moments.items()
        for stream, halves in streams.items()
        for half, half_moments in halves._asdict().items()
    }


def unpack_moments(sigmas: Sequence[float], tensors: Mapping[str, torch.Tensor]) -> MomentsBySegment:
    """Undo `pack_moments`; other tensors are left out."""
    moments: MomentsBySegment = {}
    for name in tensors:
        segment, stream, half = name.split("/")
        if half == "training":
            packed = (tensors[f"{segment}/{stream}/{half}"] for half in Halves._fields)
            moments.setdefault(segment, {})[stream] = Halves(*(Moments.unpacked(sigmas, each) for each in packed))
    return moments


def pack_maps(maps: Mapping[str, Mapping[str, Maps]]) -> dict[str, torch.Tensor]:
    """Return float32 tensors by name, `segment/stream/maps.name`; matrices, which are large, in float16."""
    return {
        f"{segment}/{stream}/maps.{name}": _narrow(field, getattr(stream_maps, field))
        for segment, streams in maps.items()
        for stream, stream_maps in streams.items()
        for field, name in MAP_NAMES.items()
    }


def unpack_maps(tensors: Mapping[str, torch.Tensor]) -> MapsBySegment:
    """Undo `pack_maps`; other tensors are left out."""
    maps: MapsBySegment = {}
    for name in tensors:
        segment, stream, kind = name.split("/")
        if kind == "maps.matrix":
            parts = {field: tensors[f"{segment}/{stream}/maps.{name}"] for field, name in MAP_NAMES.items()}
            maps.setdefault(segment, {})[stream] = Maps(**parts)
    return maps


def _narrow(field: str, values: torch.Tensor) -> torch.Tensor:
    return values.half() if field == "matrix" else values.float()
