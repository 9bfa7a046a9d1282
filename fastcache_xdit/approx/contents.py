"""What a calibration file must hold, whatever its digest says: a digest proves that nobody altered it, not what it is.

All that is wrong raises UsageError, from where files are read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcache_xdit.errors import UsageError, quoted

MOST_LEVELS = 1000  # steps of a request; moments grow with their square
_ADVICE = "calibrate again"


def check_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors that are not numbers with a fraction, or not finite.

    Raises:
        UsageError: names the first one.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise UsageError(f"{path}: {quoted(name)} holds {tensor.dtype}, and not floating-point numbers", _ADVICE)
        if not tensor.isfinite().all():
            raise UsageError(f"{path}: {quoted(name)} holds numbers that are not finite", _ADVICE)


def check_header(header: Mapping[str, Any]) -> None:
    """Refuse noise levels that no request has, and gains that are none.

    Raises:
        UsageError: says what is wrong.
    """
    levels = header["levels"]
    if not 1 <= len(levels) <= MOST_LEVELS or not _are_finite(levels) or any(np.diff(levels) > 0):
        raise UsageError(f"levels are 1 to {MOST_LEVELS} noise levels that fall, not {quoted(levels)}", _ADVICE)
    for segment, gains in header["gains"].items():
        if len(gains) != len(levels) or not _are_finite(gains) or min(gains) < 0:
            raise UsageError(f"gains of {quoted(segment)} are a number of 0 or more for each level", _ADVICE)
    for name in ("identity", "facts", "spread"):
        if not isinstance(header[name], dict):
            raise UsageError(f"{name} is {quoted(header[name])}", _ADVICE)


@contextlib.contextmanager
def told(path: str | Path) -> Iterator[None]:
    """Tell what the with block finds missing or misshapen in a file as the user's mistake."""
    try:
        yield
    except UsageError as error:
        raise (error if str(path) in error.problem else error.of(path)) from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        kind = "lacks" if isinstance(error, KeyError) else "holds what no calibration does:"
        raise UsageError(f"{path} {kind} {error}", _ADVICE) from None


def _are_finite(values: Sequence[Any]) -> bool:
    are_numbers = all(type(value) in (int, float) for value in values)
    return are_numbers and bool(np.isfinite(values).all())
