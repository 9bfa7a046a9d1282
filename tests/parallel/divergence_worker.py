"""Worker: tamper with what one rank decides from, and tell what every rank made of it.

A case is {"degrees", "tamper", "config"}; its answer says what was raised, and gives a clean request run afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from fastcache_xdit import FastCacheConfig, Handle, fastcache
from fastcache_xdit.decision.evidence import Decision
from fastcache_xdit.errors import RankDivergenceError
from fastcache_xdit.parallel.ledger import Entry
from tests.parallel.cached import EAGER, asked, cached
from tests.parallel.ranks import layout, report

TAMPERED = 1  # the rank whose numbers change
STEP = 3  # the first step at which blocks are skipped
FAMILY = "pixart"


def main(cases: dict[str, dict]) -> dict[str, dict]:
    return {name: _case(**case) for name, case in cases.items()}


def _case(degrees: dict, tamper: str = "nothing", config: dict | None = None, differ: dict | None = None) -> dict:
    with layout(FAMILY, **degrees) as pipe:
        mine = dist.get_rank() == TAMPERED
        options = {**EAGER, **(config or {}), **(differ or {} if mine else {})}
        answer = _attempt(pipe, options, TAMPERS[tamper] if mine else _nothing)
        dist.barrier()  # nobody is left waiting for a message
        return {**answer, "next": cached(pipe, FAMILY, {})}


def _attempt(pipe: Any, options: dict, tamper: Callable[[Handle], dict]) -> dict:
    try:
        with fastcache(pipe, FastCacheConfig(**options)) as handle:
            return {"raised": None, "answer": asked(handle, pipe, FAMILY, call=tamper(handle))}
    except RankDivergenceError as error:
        return {"raised": str(error)}


def _nothing(handle: Handle) -> dict:
    return {}


def _before(handle: Handle) -> dict:
    """Change this rank's sums on their way into the exchange."""
    agree = handle._session.record.consensus.agree
    handle._session.record.consensus.agree = lambda sums, stamp, place: agree(sums * 3, stamp, place)
    return {}


def _after(handle: Handle) -> dict:
    """Change the total that this rank takes out of the exchange, so that the change looks enormous."""
    agree = handle._session.record.consensus.agree

    def tampered(sums: Any, stamp: int, place: str) -> Any:
        total = agree(sums, stamp, place)
        if place.startswith(f"step {STEP},"):
            total[:, 0] *= 1e8
        return total

    handle._session.record.consensus.agree = tampered
    return {}


def _ledger(handle: Handle) -> dict:
    """Write a decision into this rank's ledger that nobody took."""
    entry = Entry(STEP, "fused", None, "transformer_blocks.1", *Decision(False, "made up"))
    return _at_step(lambda: handle._session.record.ledger.record(entry))


def _track(handle: Handle) -> dict:
    """Make this rank believe that it has skipped for long, so that it would compute where the others skip."""

    def forget() -> None:
        for state in handle._session.driver.states.values():
            state.track.skipped = 99

    return _at_step(forget)


def _reference(handle: Handle) -> dict:
    """Take this rank's references away."""
    return _at_step(handle._session.driver.reset)


def _at_step(action: Callable[[], None]) -> dict:
    """Act from the user's callback, after the step at which blocks are skipped for the first time."""

    def callback(step: int, *_: Any) -> None:
        if step == STEP:
            action()

    return {"callback": callback}


TAMPERS = {
    "nothing": _nothing,
    "before": _before,
    "after": _after,
    "ledger": _ledger,
    "track": _track,
    "reference": _reference,
}

if __name__ == "__main__":
    report(main)
