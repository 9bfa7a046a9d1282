"""EasyCache (arXiv 2507.02860) and ComfyUI's LazyCache: what the transformer adds to its input is reused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastcache_xdit.bench.peers.papers.calls import CallCounter, around_calls
from fastcache_xdit.bench.peers.papers.change import AccumulatedChange
from fastcache_xdit.bench.peers.peer import Peer, Setting, Subject

# Threshold and share of the steps computed first. The authors' are 0.025 to 0.1 and 10 steps of 50.
EASY = ((0.025, 0.2), (0.05, 0.2), (0.1, 0.2), (0.2, 0.2), (0.2, 0.1), (0.4, 0.1), (0.8, 0.1))
LAZY = (0.1, 0.2, 0.4, 0.8, 1.6)  # ComfyUI's default is 0.2
START, END = 0.15, 0.95  # ComfyUI's, of the way from noise to picture


def _padded(states: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return the input with as many channels as the output, of which PixArt has some for a variance."""
    missing = output.shape[1] - states.shape[1]
    return torch.cat([states, states.new_zeros(len(states), missing, *states.shape[2:])], dim=1) if missing else states


@contextlib.contextmanager
def _easy(subject: Subject, threshold: float, first: float) -> Iterator[dict[str, Any]]:
    rule, added = AccumulatedChange(threshold, from_computed=False), dict[int, torch.Tensor]()
    counter = CallCounter(rule.begin)
    forced = {*range(round(first * subject.steps)), subject.steps - 1}
    skips = False

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal skips
        states = args[0] if args else kwargs["hidden_states"]
        if counter.branch == 0:  # decides for the others
            skips = rule.may_skip(states, counter.step in forced)
        if skips:
            return (_padded(states, added[counter.branch]) + added[counter.branch],)
        output = original(*args, **kwargs)
        added[counter.branch] = output[0] - _padded(states, output[0])
        if counter.branch == 0:
            rule.computed(states, output[0])
        return output

    with around_calls(subject, counter, call):
        yield {}


@contextlib.contextmanager
def _lazy(subject: Subject, threshold: float) -> Iterator[dict[str, Any]]:
    """Do the same behind guidance, with one input and one output for a step."""
    rule, scheduler = AccumulatedChange(threshold, from_computed=True), subject.pipe.scheduler
    counter = CallCounter(rule.begin)
    skips, added, returned, batch = False, None, None, 1

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal skips, returned
        states = args[0] if args else kwargs["hidden_states"]
        if counter.branch == 0:
            way = 1 - float(scheduler.timesteps[counter.step]) / scheduler.config.num_train_timesteps
            # The same latents come twice where both branches are in one batch.
            skips = rule.may_skip(states[:batch], forced=not START <= way < END)
        if not skips:
            returned = original(*args, **kwargs)
        return returned  # where the step is skipped, nothing comes of it

    def step(original: Callable[..., Any], output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal added, batch
        if skips:
            output = sample + added
        else:
            added, batch = output - sample, len(sample)
            rule.computed(sample, output)
        return original(output, timestep, sample, *args, **kwargs)

    with around_calls(subject, counter, call) as undo:
        undo.wrap(scheduler, "step", step)
        yield {}


def peers() -> list[Peer]:
    """Return both, over their thresholds."""
    easy = tuple(
        Setting(f"threshold {value:g}, first {first:.0%}", {"threshold": value, "first": first})
        for value, first in EASY
    )
    lazy = tuple(Setting(f"threshold {value:g}", {"threshold": value}) for value in LAZY)
    easy_note = "our implementation after arXiv 2507.02860 and its code, its first 10 steps of 50 as a share"
    lazy_note = "our implementation after ComfyUI's node, behind guidance, on all of the latents"
    return [
        Peer("EasyCache (reimplemented)", "fastcache_xdit", _easy, easy, note=easy_note),
        Peer("LazyCache (reimplemented)", "fastcache_xdit", _lazy, lazy, note=lazy_note),
    ]
