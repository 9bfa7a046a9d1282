"""The identity of a model, so that a calibration is only used with the model that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastcache_xdit.errors import UsageError

NEAR = 2**-7  # relative difference of a number that was converted to bfloat16 and back
BASE_IDENTITY = ("model", "model_config", "scheduler", "scheduler_config")
IDENTITY = (*BASE_IDENTITY, "weights", "adapters")


def check_identity(calibrated: Mapping[str, Any], running: Mapping[str, Any], allow_adapters: bool = False) -> None:
    """Compare the identity in a calibration with that of the running model.

    Args:
        calibrated: values of `IDENTITY`: class names, digests of configs, norms and samples of the weights, adapters.
        running: the same values of the running model, as far as they are known.
        allow_adapters: compare only what adapters do not change.
    Raises:
        UsageError: a value differs; names the first one that does.
    """
    for name in BASE_IDENTITY if allow_adapters else IDENTITY:
        if not _same(calibrated.get(name), running.get(name)):
            raise UsageError(
                f"the calibration was made for another model: {name} is {_short(running.get(name))} here, and "
                f"{_short(calibrated.get(name))} in the calibration",
                "run fastcache-xdit calibrate on this model"
                f"{'' if name in BASE_IDENTITY else ', or set allow_adapters to use it all the same'}",
            )
    if not allow_adapters and samples_differ(calibrated.get("samples"), running.get("samples")):
        raise UsageError(
            "the calibration was made for other weights of this model, without an adapter that is fused here, or with "
            "one that is not",
            "run fastcache-xdit calibrate on this model, or set allow_adapters to use it all the same",
        )


def samples_differ(before: Mapping[str, float] | None, now: Mapping[str, float] | None) -> bool:
    """Tell whether numbers of the weights differ by more than rounding, in the names of both."""
    before, now = before or {}, now or {}
    return any(abs(before[name] - now[name]) > NEAR * abs(before[name]) for name in before.keys() & now.keys())


def check_adapters(calibrated: Mapping[str, Any], adapters: list[str], samples: Mapping[str, float]) -> None:
    """Compare the adapters in a calibration with those that are active now. Raises UsageError as `check_identity`."""
    if "adapters" in calibrated:
        check_identity(calibrated, {**calibrated, "adapters": adapters, "samples": samples})


def other_rounding(calibrated: Mapping[str, Any], quantisation: list[str]) -> str:
    """Say that a calibration was made with weights that were rounded otherwise; empty where they were not.

    It serves all the same: rounding that leaves the norms of weights as they are costs it less than 1 dB.
    """
    made = _rounding(calibrated)
    if not calibrated or made == quantisation:
        return ""
    return (
        f"the calibration was made with {' and '.join(made) or 'plain'} weights, and they are "
        f"{' and '.join(quantisation) or 'plain'} here; it serves them nearly as well as one of their own"
    )


def fits(calibrated: Mapping[str, Any], running: Mapping[str, Any]) -> bool:
    """Tell whether a calibration was made for the running model, as `check_identity` says, rounded and used alike."""
    pipelines = {calibrated.get("pipeline"), running.get("pipeline")} - {None}
    if len(pipelines) > 1 or _rounding(calibrated) != _rounding(running):  # image to image takes other paths
        return False
    try:
        check_identity(calibrated, running)
    except UsageError:
        return False
    return True


def _rounding(identity: Mapping[str, Any]) -> list[str]:
    return list(identity.get("quantisation", ()))  # those of earlier versions know plain weights alone


def _same(calibrated: Any, running: Any) -> bool:
    """Return whether two values are equal; fingerprints (norm by name) up to rounding, in the names of both."""
    if not isinstance(calibrated, dict) or not isinstance(running, dict):
        return calibrated == running
    names = calibrated.keys() & running.keys()
    return all(abs(calibrated[name] - running[name]) <= 1e-3 * abs(calibrated[name]) for name in names)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
