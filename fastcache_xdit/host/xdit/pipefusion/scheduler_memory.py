"""A separate scheduler memory for each PipeFusion patch, as if every patch had its own scheduler."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastcache_xdit.clock import Patch
from fastcache_xdit.undo import Undo

# State of schedulers that treat each value of the latents independently, beside the index of the step.
REMEMBERED = {
    "FlowMatchEulerDiscreteScheduler": (),
    "DPMSolverMultistepScheduler": ("model_outputs", "lower_order_nums"),
}


def is_known(pipe: Any) -> bool:
    """Return whether patches can be at different steps with this pipeline's scheduler."""
    return type(_inner(pipe)).__name__ in REMEMBERED


class SchedulerMemory:
    """Swaps the state of a pipeline's scheduler from patch to patch."""

    def __init__(self, pipe: Any) -> None:
        self._outer, self._scheduler = pipe.scheduler, _inner(pipe)
        self._names = REMEMBERED[type(self._scheduler).__name__]
        self._by_patch: dict[int | None, dict[str, Any]] = {}

    def clear(self) -> None:
        """Forget the states of the last request."""
        self._by_patch.clear()

    @contextmanager
    def of(self, patch: Patch | None, step: int) -> Iterator[None]:
        """Inside the with block, set up the scheduler for this patch (None: full latents) at this step.

        Its `step` is then diffusers' own, without xDiT's wrapper.
        """
        number = patch.number if patch else None
        if self._by_patch:
            self._recall(self._by_patch.get(number) or self._rows(patch))
        self._scheduler._step_index = step
        with Undo() as undo:
            undo.set(self._outer, "step", self._scheduler.step)
            yield
        self._by_patch[number] = {name: getattr(self._scheduler, name) for name in self._names}

    def _recall(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self._scheduler, name, value)

    def _rows(self, patch: Patch | None) -> dict[str, Any]:
        """Return the state for full latents [B, C, H, W], cut to the lines of a patch."""
        if patch is None:
            return {}
        bounds = importlib.import_module("xfuser.core.distributed").get_runtime_state().pp_patches_start_idx_local
        lines = slice(bounds[patch.number], bounds[patch.number + 1])
        return {
            name: [item if item is None else item[:, :, lines] for item in value] if isinstance(value, list) else value
            for name, value in self._by_patch[None].items()
        }


def _inner(pipe: Any) -> Any:
    """Return diffusers' scheduler from inside xDiT's wrapper."""
    return getattr(pipe.scheduler, "module", pipe.scheduler)
