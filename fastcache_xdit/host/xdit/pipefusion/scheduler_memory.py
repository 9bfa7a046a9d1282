"""A scheduler's memory of each PipeFusion patch, as if every patch had a scheduler of its own."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastcache_xdit.clock import Patch
from fastcache_xdit.undo import Undo

# What schedulers that take each value of the latents by itself remember, beside the index of the step.
REMEMBERED = {
    "FlowMatchEulerDiscreteScheduler": (),
    "DPMSolverMultistepScheduler": ("model_outputs", "lower_order_nums"),
}


def is_known(pipe: Any) -> bool:
    """Return whether patches can be at different steps of this pipeline's scheduler."""
    return type(_inner(pipe)).__name__ in REMEMBERED


class SchedulerMemory:
    """Swaps what the scheduler of a pipeline remembers, patch by patch."""

    def __init__(self, pipe: Any) -> None:
        self._outer, self._scheduler = pipe.scheduler, _inner(pipe)
        self._names = REMEMBERED[type(self._scheduler).__name__]
        self._by_patch: dict[int | None, dict[str, Any]] = {}

    def clear(self) -> None:
        """Begin a request."""
        self._by_patch.clear()

    @contextmanager
    def of(self, patch: Patch | None, step: int) -> Iterator[None]:
        """Make the scheduler's step diffusers' own, for latents of this patch (none: whole ones) at this step."""
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
        """What was remembered of whole latents [B, C, H, W], for a patch of their lines."""
        if patch is None:
            return {}
        bounds = importlib.import_module("xfuser.core.distributed").get_runtime_state().pp_patches_start_idx_local
        lines = slice(bounds[patch.number], bounds[patch.number + 1])
        return {
            name: [each if each is None else each[:, :, lines] for each in value] if isinstance(value, list) else value
            for name, value in self._by_patch[None].items()
        }


def _inner(pipe: Any) -> Any:
    """Diffusers' scheduler inside xDiT's wrapper."""
    return getattr(pipe.scheduler, "module", pipe.scheduler)
