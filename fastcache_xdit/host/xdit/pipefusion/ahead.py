"""Skipped steps under PipeFusion without messages: the last stage takes them alone, ahead of the other patches.

xDiT's loops send every patch through all stages at every step. A stage waits for its turn even where nothing is
computed, and each run of computed steps fills and drains the pipeline anew. Where a mask says which steps are skipped,
none of this is needed: what all blocks would add is made of residuals (method.md 2), and whatever lies before and after
the blocks every stage holds. So the loops of all stages are given the computed steps alone. After each, the last stage
takes the skipped ones that follow for the patch it has just finished, before it turns to the next patch; the first
stage gets that patch back at its next computed step, and the pipeline stays full.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fastcache_xdit.host.base import PatchView
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.undo import Undo

LOOPS = ("_sync_pipeline", "_async_pipeline")
# What schedulers that take each value of the latents by itself remember, beside the index of the step.
REMEMBERED = {
    "FlowMatchEulerDiscreteScheduler": (),
    "DPMSolverMultistepScheduler": ("model_outputs", "lower_order_nums"),
}
TEXTS = "encoder_hidden_states_cache"
Skipped = Callable[[int], Sequence[bool]]  # which of so many steps are skipped


def possible(pipe: Any) -> bool:
    """Whether this is a pipeline of xDiT with stages, and a scheduler whose patches can be at different steps."""
    methods = (*LOOPS, "_backbone_forward", "_scheduler_step")
    if not all(hasattr(type(pipe), name) for name in methods):
        return False
    known = type(_scheduler(pipe)).__name__ in REMEMBERED
    return known and _stages().get_pipeline_parallel_world_size() > 1


class Ahead:
    """Stands around the loops of one pipeline, on every stage."""

    def __init__(self, pipe: Any, session: Session, skipped: Skipped) -> None:
        self.pipe, self.session, self.skipped = pipe, session, skipped
        self.is_last = _stages().is_pipeline_last_stage()
        self._backbone: Callable[..., Any] = pipe._backbone_forward
        self._timesteps: list[torch.Tensor] = []
        self._skips: Sequence[bool] = ()
        self._steps: dict[int, int] = {}  # by the identity of a timestep, whose value is on the device
        self._taken = 0
        self._memory = Memory(pipe)
        self._text: torch.Tensor | None = None
        self._call: dict[str, Any] = {}

    def looped(self, loop: Callable[..., Any], begins: bool) -> Callable[..., Any]:
        """What takes the place of one of xDiT's `LOOPS`: the same over the computed steps; `begins`: a request."""

        @functools.wraps(loop)
        def run(*args: Any, timesteps: Sequence[torch.Tensor], **kwargs: Any) -> Any:
            if begins:
                self._begin()
                kwargs["sync_only"] = all(self._skips[len(timesteps) :])  # then nothing is left for patches
            first, self._taken = self._taken, self._taken + len(timesteps)
            self._text = kwargs.get("prompt_embeds")
            kept = [step for step in range(first, self._taken) if not self._skips[step]]
            self._steps = {id(self._timesteps[step]): step for step in kept}
            result = loop(*args, timesteps=[self._timesteps[step] for step in kept], **kwargs)
            kwargs["progress_bar"].update(len(timesteps) - len(kept))
            if self._taken == len(self._timesteps):
                self._text, self._call = None, {}
                self.session.conclude()
            return result

        return run

    def _begin(self) -> None:
        self._timesteps, self._taken = list(self.pipe.scheduler.timesteps), 0
        self._memory.clear()
        self._skips = self.skipped(len(self._timesteps))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What takes the place of `_backbone_forward`."""
        step, self._call = self._steps[id(kwargs["t"])], kwargs
        with self.session.clock.at(step):
            output = self._backbone(*args, **kwargs)
        if not self.is_last:
            for following in self._run_after(step):
                self.session.pass_over(following)
        return output

    def stepped(self, advance: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """What takes the place of `_scheduler_step` on the last stage: gives the latents of the next computed step."""

        @functools.wraps(advance)
        def run(noise: torch.Tensor, latents: torch.Tensor, t: torch.Tensor, *extra: Any) -> torch.Tensor:
            step = self._steps[id(t)]
            self.session.rebase(self._entering(latents, t))
            for now in (step, *self._run_after(step)):
                if now > step:
                    noise = self._alone(latents, self._timesteps[now], now)
                with self._memory.of(self.session.patch(), now):
                    latents = advance(noise, latents, self._timesteps[now], *extra)
            return latents

        return run

    def _run_after(self, step: int) -> Iterator[int]:
        """The skipped steps up to the next computed one."""
        for following in range(step + 1, len(self._skips)):
            if not self._skips[following]:
                return
            yield following

    def _alone(self, latents: torch.Tensor, t: torch.Tensor, step: int) -> torch.Tensor:
        """What the model predicts for the current patch, as if this stage were the only one."""
        with _only_stage(self.pipe.transformer), self.session.clock.at(step):
            output = self._backbone(**self._instead(latents, t))
        return output[0] if isinstance(output, tuple) else output

    def _entering(self, latents: torch.Tensor, t: torch.Tensor) -> Streams:
        """What entered the first stage's blocks."""
        with _only_stage(self.pipe.transformer):
            return self.session.driver.entering(lambda: self._backbone(**self._instead(latents, t)))

    def _instead(self, latents: torch.Tensor, t: torch.Tensor) -> dict[str, Any]:
        """The last call's arguments as the first stage has them."""
        text = {"encoder_hidden_states": self._text} if "encoder_hidden_states" in self._call else {}
        return {**self._call, "latents": latents, "t": t, **text}


class Memory:
    """A scheduler's memory of each patch, as if every patch had a scheduler of its own."""

    def __init__(self, pipe: Any) -> None:
        self._outer, self._scheduler = pipe.scheduler, _scheduler(pipe)
        self._names = REMEMBERED[type(self._scheduler).__name__]
        self._known: dict[int | None, dict[str, Any]] = {}

    def clear(self) -> None:
        """A request begins."""
        self._known.clear()

    @contextmanager
    def of(self, patch: PatchView | None, step: int) -> Iterator[None]:
        """Inside, the scheduler's step is diffusers' own, for latents of this patch (none: whole ones) at this step."""
        number = patch.number if patch else None
        if self._known:
            self._recall(self._known.get(number) or self._rows(patch))
        self._scheduler._step_index = step
        with Undo() as undo:
            undo.set(self._outer, "step", self._scheduler.step)
            yield
        self._known[number] = {name: getattr(self._scheduler, name) for name in self._names}

    def _recall(self, known: dict[str, Any]) -> None:
        for name, value in known.items():
            setattr(self._scheduler, name, value)

    def _rows(self, patch: PatchView | None) -> dict[str, Any]:
        """What was remembered of whole latents [B, C, H, W], for a patch of their lines."""
        if patch is None:
            return {}
        bounds = _runtime_state().pp_patches_start_idx_local
        lines = slice(bounds[patch.number], bounds[patch.number + 1])
        return {
            name: [each if each is None else each[:, :, lines] for each in value] if isinstance(value, list) else value
            for name, value in self._known[None].items()
        }


def install(pipe: Any, undo: Undo, session: Session, skipped: Skipped) -> None:
    """Let the last stage take skipped steps alone, for as long as the undo log lives, where that is `possible`."""
    ahead = Ahead(pipe, session, skipped)
    for name in LOOPS:
        undo.set(pipe, name, ahead.looped(getattr(pipe, name), begins=name == LOOPS[0]))
    undo.set(pipe, "_backbone_forward", ahead.forward)
    if ahead.is_last:
        undo.set(pipe, "_scheduler_step", ahead.stepped(pipe._scheduler_step))


def _scheduler(pipe: Any) -> Any:
    """Diffusers' scheduler inside xDiT's wrapper."""
    return getattr(pipe.scheduler, "module", pipe.scheduler)


def _runtime_state() -> Any:
    return importlib.import_module("xfuser.core.distributed").get_runtime_state()


def _stages() -> Any:
    return importlib.import_module("xfuser.core.distributed.parallel_state")


@contextmanager
def _only_stage(transformer: Any) -> Iterator[None]:
    """What asks whether this stage is the first or the last one hears that it is both.

    SD3 keeps the first patch's text for the others, which shall not be that of a step that is ahead.
    """
    with Undo() as undo:
        if TEXTS in vars(transformer):
            undo.set(transformer, TEXTS, list(getattr(transformer, TEXTS)))
        undo.set(_stages(), "get_pipeline_parallel_rank", lambda: 0)
        undo.set(_stages(), "get_pipeline_parallel_world_size", lambda: 1)
        yield
