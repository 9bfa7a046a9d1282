"""Worker: each transformer of xDiT's runner in each layout, beside the same model in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastcache_xdit.host import cpu
from fastcache_xdit.plugin import repaired
from tests.models.loop import MASK, STEPS, Loop
from tests.models.zoo import ZOO
from tests.parallel.answers import Answer, Run
from tests.parallel.cached import relative
from tests.parallel.pipeline_cases import pipeline_answers
from tests.parallel.ranks import answer_or_text, engine, report
from tests.parallel.runner_zoo import LAYOUTS, PLACES, RUNNERS, forward_of, plain, wrapped

DEGREES = {layout: next(iter(degrees)) for layout, degrees in LAYOUTS.items()}


def main() -> dict[str, Any]:
    """Return by model and layout an answer or the text of an exception; what there is."""
    cpu.prepare()
    answers: dict[str, dict[str, Any]] = {name: {} for name in RUNNERS}
    for name, layout in PLACES:
        answers[name][layout] = _answer_or_text(name, layout)
    pipelines = pipeline_answers()
    seen = {"offered": _offered(), "modules": _modules(), "classes": _classes()}
    return {"answers": answers, "pipelines": pipelines, **seen}


def _answer_or_text(name: str, layout: str) -> Answer | str:
    if not _offered()[RUNNERS[name].name][layout]:
        return f"{RUNNERS[name].name} has no {DEGREES[layout]}"
    return answer_or_text(lambda: _answer(name, layout))


def _answer(name: str, layout: str) -> Answer:
    config = engine(**LAYOUTS[layout])
    alone, model = Loop(ZOO[name], plain(name)), wrapped(name, config)
    loop = Loop(ZOO[name], model, forward_of(name, model))
    truth, broken = alone.generate(), loop.generate()
    with repaired(model):
        cured = loop.generate()
    run, expected = _run(loop, MASK), _run(alone, MASK)
    exact = torch.equal(_run(loop, "1" * STEPS).latents, cured)
    errors = relative(broken, truth), relative(cured, truth), relative(run.latents, expected.latents)
    return Answer(*errors, exact, run, expected)


def _run(loop: Loop, mask: str) -> Run:
    with loop.cached(mask, "step") as handle:
        latents = loop.generate()
        seen = handle.report()
    return Run(latents, [entry.choice for entry in seen.ledger], seen.counters.to_dict())


def _offered() -> dict[str, dict[str, bool]]:
    """Return by model of the runner which layouts it has."""
    from xfuser.model_executor.models.runner_models.base_model import MODEL_REGISTRY

    return {
        name: {layout: getattr(model.capabilities, degree) for layout, degree in DEGREES.items()}
        for name, model in MODEL_REGISTRY.items()
    }


def _classes() -> list[str]:
    """Return the pipeline classes of diffusers that xDiT has a class for."""
    from xfuser.model_executor.pipelines.register import xFuserPipelineWrapperRegister

    return [kind.__name__ for kind in xFuserPipelineWrapperRegister._XFUSER_PIPE_MAPPING]


def _modules() -> list[str]:
    """Return the modules of the transformers of the runner's models."""
    from xfuser.model_executor.models import transformers

    return [path.stem.removeprefix("transformer_") for path in Path(transformers.__file__).parent.glob("transformer_*")]


if __name__ == "__main__":
    report(main)
