"""What is known of a model that nobody has calibrated: how the outputs of other models move from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, reduce
from pathlib import Path

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.moments import Halves, Moments
from fastcache_xdit.approx.output import SEGMENT, STREAM
from fastcache_xdit.approx.tensor_file import TensorFile, read_tensors, write_tensors
from fastcache_xdit.errors import UsageError

KIND = "fastcache pooled 1"
FILE = Path(__file__).with_name("pooled.safetensors")


def write_pooled(models: Mapping[str, Moments], path: Path = FILE) -> None:
    """Write the moments of models' outputs, each with the same weights for all channels and the same energy."""
    sigmas = next(iter(models.values())).sigmas
    tensors = {name: _alike(moments).packed() for name, moments in models.items()}
    write_tensors(path, TensorFile(KIND, {"sigmas": sigmas, "models": sorted(models)}, tensors))


@lru_cache
def pooled(without: str = "", path: Path = FILE) -> Calibration:
    """Return a calibration of the output, pooled over models; all of the file's, or all but one, to measure it by.

    Raises:
        UsageError: no other model is left.
    """
    _, header, tensors = read_tensors(path, KIND)
    names = [name for name in header["models"] if name != without]
    if not names:
        raise UsageError(f"{path} has no other model than {without}")
    sigmas = tuple(header["sigmas"])
    moments = [Moments.unpacked(sigmas, tensors[name]) for name in names]
    halves = Halves(reduce(Moments.plus, moments[:-1] or moments), moments[-1])  # what it takes to serve another model
    return Calibration({}, {"pooled": names}, sigmas, {SEGMENT: {STREAM: halves}})


def _alike(moments: Moments) -> Moments:
    """Return moments of one channel [1, 2T+1, 2T+1] for all, with a mean energy of 1 over the steps."""
    gram = moments.gram.sum(dim=0, keepdim=True)
    return Moments(moments.sigmas, gram / gram[0].diagonal()[: moments.steps].mean())
