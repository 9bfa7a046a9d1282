"""Which of xDiT's layouts each transformer class has, in its runner or its own pipelines, and why not others."""

from __future__ import annotations

from functools import cache

from fastcache_xdit.models.tried import KINDS
from tests.parallel import runner_zoo
from tests.parallel.answers import faults_of
from tests.parallel.pipeline_zoo import PIPELINES, plain
from tests.parallel.runner_zoo import PLACES, RUNNERS

NAMES = {**runner_zoo.WORDS, "pipefusion": "PipeFusion", "tensor": "tensor parallelism"}


@cache
def pipelines() -> dict[str, tuple[str, ...]]:
    """Return by transformer class the pipelines that xDiT has a class for."""
    found: dict[str, tuple[str, ...]] = {}
    for kind in PIPELINES:
        if (transformer := getattr(plain(kind), "transformer", None)) is not None:
            name = type(transformer).__name__
            found[name] = (*found.get(name, ()), kind)
    return found


def offered(name: str) -> tuple[str, ...]:
    """Return the layouts of a class that are tried, in any of its pipelines."""
    kinds = {layout for at, layout in PLACES if at == name}
    kinds |= {layout for kind in pipelines().get(name, ()) for layout in PIPELINES[kind].layouts}
    return tuple(kind for kind in KINDS.values() if kind in kinds)


def refused(name: str) -> dict[str, str]:
    """Return why a class does not have the other layouts, and what one of its pipelines lacks beside the others."""
    if name not in RUNNERS and name not in pipelines():
        return {}
    has, reasons = offered(name), {}
    for layout in KINDS.values():
        why = {kind: _reason(kind, layout) for kind in pipelines().get(name, ())}
        if layout not in has:
            reasons[layout] = next(iter(why.values()), "") or _of_runner(name, layout)
        else:
            reasons |= {f"{kind}, {layout}": reason for kind, reason in why.items() if reason}
    return reasons


def _reason(kind: str, layout: str) -> str:
    made = PIPELINES[kind]
    return "" if layout in made.layouts else made.why.get(layout, f"xDiT has no {NAMES[layout]} for {kind}")


def _of_runner(name: str, layout: str) -> str:
    runner = RUNNERS[name]
    if layout in runner.untried:
        return "not tried: its pipeline divides the work, and not its transformer"
    return f"xDiT has no {NAMES[layout]} for {runner.name}"


def passed() -> dict[str, tuple[str, ...]]:
    """Run all; return by class the layouts in which the cache is as good as in one process."""
    kinds = {name: set(layouts) for name, layouts in runner_zoo.passed().items()}
    for name, found in pipelines().items():
        kinds.setdefault(name, set()).update(layout for kind in found for layout in _passed_by(kind))
    return {name: tuple(kind for kind in KINDS.values() if kind in found) for name, found in kinds.items()}


def _passed_by(kind: str) -> list[str]:
    ranks = [result["pipelines"][kind] for result in runner_zoo.results()]
    return [layout for layout in PIPELINES[kind].layouts if not any(faults_of(rank[layout]) for rank in ranks)]
