"""Worker: what requests leave behind for the next one, and what the cache leaves behind when it is off.

A case is {"family", "ask", "degrees"}; its question runs in one layout of a tiny pipeline, see QUESTIONS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fastcache_xdit import FastCacheConfig, Handle, enable, fastcache
from tests import tiny
from tests.parallel.cached import EAGER, STEPS, Answer, asked, cached, uncached
from tests.parallel.ranks import by_hand, generate, layout, report
from tests.parallel.trace import differing, names

SMALL, LARGE = {"seed": 1, "pixels": 128}, {"seed": 2, "pixels": 192}
CONFIG = FastCacheConfig(**EAGER)
Arm = Callable[[Handle], contextlib.AbstractContextManager[dict]]  # gives further arguments of the request


class Stop(Exception):
    """What a test raises in the middle of a request."""


def main(cases: dict[str, dict]) -> dict[str, Any]:
    return {name: _case(**case) for name, case in cases.items()}


def _case(family: str, ask: str, degrees: dict | None = None) -> Any:
    if ask == "by hand":
        return _by_hand(family, **(degrees or {}))
    with layout(family, **(degrees or {})) as pipe:
        return QUESTIONS[ask](pipe, family)


def _by_hand(family: str, **degrees: Any) -> dict[str, Answer]:
    """Run a pipeline that is divided by hand: uncached, by a test of significance, and as planned."""
    noise = tiny.call_arguments(family)["latents"]
    noise[..., noise.shape[-2] // 2 :, :] *= 0.1  # a rank that sees the lower half alone would decide otherwise
    request: dict[str, Any] = {"call": {"latents": noise}}
    with by_hand(family, **degrees) as pipe:
        answers = {"uncached": uncached(pipe, family, **request), "paper": cached(pipe, family, {}, **request)}
        with fastcache(pipe, budget=0.5, learn=0) as handle:
            answers["plan"] = asked(handle, pipe, family, **request)
    return answers


def _in_a_row(pipe: Any, family: str) -> dict[str, list[Answer]]:
    """Run two requests of different size and prompt, alone and in a row with one handle."""
    uncached(
        pipe, family, **LARGE
    )  # xDiT computes PixArt's positions anew, with other rounding, from the second size on
    alone = [cached(pipe, family, {}, **request) for request in (SMALL, LARGE)]
    with fastcache(pipe, CONFIG) as handle:
        row = [asked(handle, pipe, family, **request) for request in (SMALL, LARGE, SMALL)]
    return {"alone": [*alone, alone[0]], "row": row}


def _on_and_off(pipe: Any, family: str) -> dict[str, Any]:
    """Enable and disable twice; what differs while the cache is on, and once it is off."""
    plain = [uncached(pipe, family)]
    before = names(pipe)
    answers, changed, left = [], [], []
    for _ in range(2):
        handle = enable(pipe, CONFIG)
        answers.append(asked(handle, pipe, family))
        changed.append(differing(before, pipe))
        handle.disable()
        handle.disable()
        left.append(differing(before, pipe))
    return {"plain": [*plain, uncached(pipe, family)], "cached": answers, "changed": changed, "left": left}


def _callback(pipe: Any, family: str) -> dict[str, Any]:
    """Raise from the user's callback in the middle of a request."""

    def stop(step: int, *_: Any) -> None:
        if step == STEPS // 2:
            raise Stop

    return _interrupted(pipe, family, lambda handle: contextlib.nullcontext({"callback": stop}))


def _attention(pipe: Any, family: str) -> dict[str, Any]:
    """Raise inside an attention of the last pipeline stage in the last call; earlier stages finish the request."""

    @contextlib.contextmanager
    def arm(handle: Handle) -> Iterator[dict]:
        def stop(*_: Any) -> None:
            tick = handle._session.clock.now
            if tick.steps_left == 0 and not tick.patch == 0:
                raise Stop

        hook = _last_attention(pipe).register_forward_pre_hook(stop)
        try:
            yield {}
        finally:
            hook.remove()

    return _interrupted(pipe, family, arm)


def _last_attention(pipe: Any) -> Any:
    from xfuser.core.distributed import is_pipeline_last_stage

    last = pipe.transformer.transformer_blocks[-1].attn1
    return last if is_pipeline_last_stage() else pipe.vae


def _interrupted(pipe: Any, family: str, arm: Arm) -> dict[str, Any]:
    """Stop a request, first by leaving the with block, then inside it; run the next one without and with the cache."""
    fresh = [uncached(pipe, family), cached(pipe, family, {})]
    before, stopped = names(pipe), []
    try:
        with fastcache(pipe, CONFIG) as handle, arm(handle) as more:
            generate(pipe, family, steps=STEPS, call=more)
    except Stop:
        stopped.append("left the block")
    left = differing(before, pipe)
    next_ones = [uncached(pipe, family)]
    with fastcache(pipe, CONFIG) as handle:
        with contextlib.suppress(Stop), arm(handle) as more:
            generate(pipe, family, steps=STEPS, call=more)
            stopped.append("not at all")
        next_ones.append(asked(handle, pipe, family))
    return {"fresh": fresh, "next": next_ones, "left": left, "stopped": stopped}


QUESTIONS = {"in a row": _in_a_row, "on and off": _on_and_off, "callback": _callback, "attention": _attention}

if __name__ == "__main__":
    report(main)
