"""Worker: each transformer of xDiT's runner in each layout, beside the same model in one process."""

from __future__ import annotations

import traceback

import torch

from fastcache_xdit.plugin import repaired
from tests.models.loop import MASK, STEPS, Loop
from tests.models.zoo import ZOO
from tests.parallel.cached import relative
from tests.parallel.ranks import _forget, engine, report, take_down
from tests.parallel.runner_zoo import LAYOUTS, RUNNERS, Answer, Run, plain, wrapped


def main(names: list[str] | None = None, layouts: list[str] | None = None) -> dict[str, dict[str, Answer | str]]:
    """Return an answer, or the text of an exception, for each model and layout."""
    return {name: {layout: _asked(name, layout) for layout in layouts or LAYOUTS} for name in names or RUNNERS}


def _asked(name: str, layout: str) -> Answer | str:
    try:
        answer = _answer(name, layout)
    except Exception as error:
        print(name, layout, flush=True)
        traceback.print_exc()
        _forget()
        return f"{type(error).__name__}: {error}"
    take_down()
    return answer


def _answer(name: str, layout: str) -> Answer:
    config = engine(**LAYOUTS[layout])
    alone = Loop(ZOO[name], plain(name))
    loop = Loop(ZOO[name], wrapped(name, config))
    with repaired(loop.model):
        uncached = loop.generate()
    drift = relative(uncached, alone.generate())
    run, expected = _run(loop, MASK), _run(alone, MASK)
    exact = torch.equal(_run(loop, "1" * STEPS).latents, uncached)
    return Answer(drift, relative(run.latents, expected.latents), exact, run, expected)


def _run(loop: Loop, mask: str) -> Run:
    with loop.cached(mask, "step") as handle:
        latents = loop.generate()
        seen = handle.report()
    return Run(latents, [entry.choice for entry in seen.ledger], seen.counters.to_dict())


if __name__ == "__main__":
    report(main)
