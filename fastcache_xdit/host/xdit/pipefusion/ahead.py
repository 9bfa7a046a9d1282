"""Skipped steps under PipeFusion without messages: the last stage runs them alone, ahead of the other patches.

xDiT's loops send every patch through all stages at every step. A stage waits for its turn even if nothing is computed,
and each run of computed steps fills and drains the pipeline anew. If a schedule says which steps are skipped, none of
this is needed: the stand-in estimates the residual of all blocks (method.md 2), and every stage holds the layers before
and after the blocks. So the loops of all stages receive only the computed steps. After each of them, the last stage
runs the following skipped steps for the patch that it has just finished, before it turns to the next patch. The first
stage gets that patch back at its next computed step, and the pipeline stays full.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fastcache_xdit.host.base import Skips
from fastcache_xdit.host.xdit.pipefusion.scheduler_memory import SchedulerMemory, is_known
from fastcache_xdit.host.xdit.pipefusion.single_stage import SingleStage, stages
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.segment import Block
from fastcache_xdit.undo import Undo

LOOPS = ("_sync_pipeline", "_async_pipeline")
Loop = Callable[..., Any]
Advance = Callable[..., torch.Tensor]  # xDiT's `_scheduler_step`


def possible(pipe: Any) -> bool:
    """Return whether this is an xDiT pipeline with PipeFusion stages whose patches can be at different steps."""
    methods = (*LOOPS, "_backbone_forward", "_scheduler_step")
    if not all(hasattr(type(pipe), name) for name in methods):
        return False
    return is_known(pipe) and stages().get_pipeline_parallel_world_size() > 1


def install(pipe: Any, undo: Undo, session: Session, skips: Skips, first_block: Block | None) -> None:
    """Let the last stage run skipped steps alone, for as long as the undo log is open; it must be `possible`."""
    ahead = Ahead(pipe, session, skips, first_block)
    for name in LOOPS:
        undo.wrap(pipe, name, functools.partial(ahead.loop, name == LOOPS[0]))
    undo.wrap(pipe, "_backbone_forward", ahead.forward)
    if stages().is_pipeline_last_stage():
        undo.wrap(pipe, "_scheduler_step", ahead.step)


class Ahead:
    """Stands around the loops of one pipeline, on every stage.

    Args:
        pipe: the pipeline.
        session: the session of its transformer.
        skips: returns for noise levels which steps are skipped.
        first_block: the first block of this stage; None where the whole output is stood in for, which takes no block.
    """

    def __init__(self, pipe: Any, session: Session, skips: Skips, first_block: Block | None) -> None:
        self.pipe, self.session, self.skips = pipe, session, skips
        self._alone = SingleStage(pipe, session, first_block, pipe._backbone_forward) if first_block else None
        self._memory = SchedulerMemory(pipe)
        self._timesteps: list[torch.Tensor] = []
        self._skips: Sequence[bool] = ()
        self._begun = 0  # number of the request's steps that were passed to a loop
        self._computed: list[int] = []  # computed steps of the running loop
        self._to_come: dict[int | None, Iterator[int]] = {}  # those still to come, by patch
        self._step = 0

    def loop(self, begins: bool, loop: Loop, *args: Any, timesteps: Sequence[torch.Tensor], **kwargs: Any) -> Any:
        """Run only the computed steps of one of xDiT's `LOOPS`; `begins`: the first of a request."""
        if self.session.is_bypassed:
            return loop(*args, timesteps=timesteps, **kwargs)
        if begins:
            self._begin()
            kwargs["sync_only"] = all(self._skips[len(timesteps) :])  # no step is left for the loop over patches
        first, self._begun = self._begun, self._begun + len(timesteps)
        self._computed = [step for step in range(first, self._begun) if not self._skips[step]]
        self._to_come.clear()
        if self._alone:
            self._alone.text = kwargs.get("prompt_embeds")
        result = loop(*args, timesteps=[self._timesteps[step] for step in self._computed], **kwargs)
        kwargs["progress_bar"].update(len(timesteps) - len(self._computed))
        if self._begun == len(self._timesteps):
            if self._alone:
                self._alone.clear()
            self.session.conclude()
        return result

    def forward(self, backbone: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run xDiT's `_backbone_forward` at the next computed step of the current patch."""
        if self.session.is_bypassed:
            return backbone(*args, **kwargs)
        self._step = self._next_step()
        if self._alone:
            self._alone.call = kwargs
        with self.session.clock.at(self._step):
            output = backbone(*args, **kwargs)
        if not stages().is_pipeline_last_stage():
            for following in self._run_after(self._step):
                self.session.record_remote_skip(following)
        return output

    def step(self, advance: Advance, noise: torch.Tensor, latents: torch.Tensor, t: Any, *extra: Any) -> torch.Tensor:
        """Run xDiT's `_scheduler_step` on the last stage, and go on to the patch's next computed step."""
        if self.session.is_bypassed:
            return advance(noise, latents, t, *extra)
        computed = self._step  # xDiT calls this right after the patch's forward
        if self._alone:
            self.session.rebase(self._alone.entering(latents, t))
        for step in (computed, *self._run_after(computed)):
            if step > computed:
                noise = self._stand_in(noise, latents, step)
            latents = self._advanced(advance, noise, latents, step, extra)
        return latents

    def _stand_in(self, noise: torch.Tensor, latents: torch.Tensor, step: int) -> torch.Tensor:
        """Return the prediction of a skipped step; one of the right form where the whole output is stood in for."""
        if self._alone:
            return self._alone.predict(latents, self._timesteps[step], step)
        self.session.record_remote_skip(step)
        return noise

    def _advanced(
        self, advance: Advance, noise: torch.Tensor, latents: torch.Tensor, step: int, extra: Any
    ) -> torch.Tensor:
        """Let the scheduler advance the current patch, with its own memory; it is not the one that is listened to."""

        def step_alone(output: torch.Tensor) -> tuple[torch.Tensor]:
            if not any(self._skips):  # patches stay together; xDiT's own step may round otherwise than diffusers'
                return (advance(output, latents, self._timesteps[step], *extra),)
            with self._memory.of(self.session.current_patch(), step):
                return (advance(output, latents, self._timesteps[step], *extra),)

        return self.session.hand_over(noise, latents, step_alone)[0]

    def _begin(self) -> None:
        self._timesteps, self._begun = list(self.pipe.scheduler.timesteps), 0
        self._memory.clear()
        self.session.begin()
        assert self.session.sigmas
        self._skips = self.skips(self.session.sigmas())

    def _next_step(self) -> int:
        """Return the next step of the current patch, by counting: the value of a timestep is on the device."""
        patch = self.session.current_patch()
        return next(self._to_come.setdefault(patch and patch.number, iter(self._computed)))

    def _run_after(self, step: int) -> Iterator[int]:
        """Yield the skipped steps up to the next computed one."""
        for following in range(step + 1, len(self._skips)):
            if not self._skips[following]:
                return
            yield following
