"""What tells one model from another, so that a calibration is used only where it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcache_xdit.errors import UsageError

BASE_IDENTITY = ("model", "model_config", "scheduler", "scheduler_config")
IDENTITY = (*BASE_IDENTITY, "weights", "adapters")


def check_identity(calibrated: Mapping[str, Any], running: Mapping[str, Any], allow_adapters: bool = False) -> None:
    """Compare the identity in a calibration with that of the running model.

    Args:
        calibrated: values of `IDENTITY`: names, digests of configs, a fingerprint of weights, adapters.
        running: the same of the running model, or as much as is known of it.
        allow_adapters: compare only what no adapter changes.
    Raises:
        UsageError: names the first field that differs, with both values.
    """
    for name in BASE_IDENTITY if allow_adapters else IDENTITY:
        if not _same(calibrated.get(name), running.get(name)):
            raise UsageError(
                f"the calibration was made for another model: {name} is {_short(running.get(name))} here, and "
                f"{_short(calibrated.get(name))} in the calibration",
                "run fastcache-xdit calibrate on this model"
                f"{'' if name in BASE_IDENTITY else ', or set allow_adapters to use it all the same'}",
            )


def _same(mine: Any, theirs: Any) -> bool:
    """Equal; fingerprints (name -> norm) where the names that both hold differ by rounding only."""
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return mine == theirs
    shared = mine.keys() & theirs.keys()
    return all(abs(mine[name] - theirs[name]) <= 1e-3 * abs(mine[name]) for name in shared)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
