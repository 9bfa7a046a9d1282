"""Whether what was learnt applies to a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastcache_xdit.approx.calibration import Calibration

NEAR = 2.0  # factor in guidance scale within which what was learnt still applies


def difference(learnt: Calibration, kwargs: Mapping[str, Any], adapters: Sequence[str]) -> str:
    """Say in what a call of the pipeline is too far from the recorded ones; nothing where it is near enough.

    Args:
        learnt: what was learnt; its facts say by what calls.
        kwargs: arguments of the call, defaults included.
        adapters: those that are active.
    """
    if list(adapters) != list(learnt.identity.get("adapters", adapters)):
        return f"it was learnt with the adapters {learnt.identity['adapters']}, not with {list(adapters)}"
    given, recorded = kwargs.get("guidance_scale"), learnt.facts.get("guidance_scale")
    if isinstance(given, float | int) and recorded and not 1 / NEAR <= given / recorded <= NEAR:
        return f"it was learnt with guidance_scale {recorded:g}, and {given:g} is far from that"
    return ""
