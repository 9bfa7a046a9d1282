"""Whether what was learnt applies to a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.identity import samples_differ
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.identity import adapters
from fastcache_xdit.host.weights import samples

NEAR = 2.0  # factor in guidance scale within which what was learnt still applies


class WeightsWatch:
    """Sees whether adapters or weights of a model have changed since it last looked.

    Args:
        host: of the model.
        looks_at_weights: whether to look at numbers of the weights too. Ranks that hold others would see other
            things.
    """

    def __init__(self, host: Host, looks_at_weights: bool) -> None:
        self._host, self._looks_at_weights = host, looks_at_weights
        self._seen = self._look()

    def has_changed(self) -> bool:
        """Tell whether anything was changed since the last call."""
        before, self._seen = self._seen, self._look()
        return before[0] != self._seen[0] or samples_differ(before[1], self._seen[1])

    def _look(self) -> tuple[list[str], dict[str, float]]:
        return adapters(self._host), samples(self._host) if self._looks_at_weights else {}


def adapter_scale(kwargs: Mapping[str, Any]) -> float:
    """Return by how much a call scales its adapters, as `joint_attention_kwargs={"scale": 0.5}` does; 1 by default."""
    given = (value.get("scale") for name, value in kwargs.items() if name.endswith("attention_kwargs") and value)
    return next((float(scale) for scale in given if scale is not None), 1.0)


def difference(learnt: Calibration, kwargs: Mapping[str, Any], active: Sequence[str]) -> str:
    """Say in what a call of the pipeline is too far from the recorded ones; nothing where it is near enough.

    Args:
        learnt: what was learnt; its facts say by what calls.
        kwargs: arguments of the call, defaults included.
        active: the adapters that are.
    """
    if list(active) != list(learnt.identity.get("adapters", active)):
        return f"it was learnt with the adapters {learnt.identity['adapters']}, not with {list(active)}"
    scale, learnt_with = adapter_scale(kwargs), learnt.facts.get("adapter_scale", 1.0)
    if active and scale != learnt_with:
        return f"it was learnt with adapters at a scale of {learnt_with:g}, not {scale:g}"
    given, recorded = kwargs.get("guidance_scale"), learnt.facts.get("guidance_scale")
    if isinstance(given, float | int) and recorded and not 1 / NEAR <= given / recorded <= NEAR:
        return f"it was learnt with guidance_scale {recorded:g}, and {given:g} is far from that"
    return ""
