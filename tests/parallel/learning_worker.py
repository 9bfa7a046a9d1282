"""Worker: learn on a few requests of a tiny pipeline under each layout, then serve two more by what was learnt.

The few are taken for enough to weigh the latents too, so that ranks learn all that there is to learn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fastcache_xdit import FastCacheConfig, enable
from fastcache_xdit.decision.schedule import skipped_steps
from fastcache_xdit.home import Home
from fastcache_xdit.host.xdit import world
from fastcache_xdit.learning import lesson
from tests import tiny
from tests.parallel.learning import LEARN, SERVED, STEPS, Answer
from tests.parallel.ranks import generate, layout, report


def main(layouts: dict[str, dict[str, Any]]) -> dict[str, Answer]:
    with mock.patch.object(lesson, "ENOUGH_FOR_LATENTS", LEARN):
        return {name: _learnt(**settings) for name, settings in layouts.items()}


def _learnt(family: str, double: bool = False, **degrees: Any) -> Answer:
    with layout(family, **degrees) as pipe:
        if double:
            pipe.transformer.double().register_forward_pre_hook(_in_double, with_kwargs=True)
        home = Path(world.all_gather_objects(tempfile.mkdtemp())[0])
        with _at_home(home):
            handle = enable(pipe, FastCacheConfig(learn=LEARN))
            learnt, choices = [], []
            for seed in range(LEARN + SERVED):
                learnt.append(handle.learnt is not None)
                generate(pipe, family, steps=STEPS, call=_embeddings(family, seed, double), seed=seed)
                choices.append([entry.choice for entry in handle.report().ledger])
            calibration, pilot = handle.learnt, handle._session.driver.pilot
            skipped = skipped_steps([mark == "1" for mark in pilot.mask])
            weights = {
                step: torch.cat(pilot.weights(step, computed, sees_latents=True), dim=1) for step, computed in skipped
            }
            handle.disable()
        mask = calibration.facts["masks"][str(STEPS // 2)]
        return Answer(learnt, choices, mask, weights, [kept.name for kept in Home(home).listed()], calibration.stamp)


def _in_double(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take in float64 what a scheduler returns in float32."""
    first = tuple(
        part.double() if isinstance(part, torch.Tensor) and part.is_floating_point() else part for part in args
    )
    if "hidden_states" in kwargs:
        kwargs = {**kwargs, "hidden_states": kwargs["hidden_states"].double()}
    return first, kwargs


def _embeddings(family: str, seed: int, double: bool) -> dict[str, torch.Tensor]:
    """Return the texts' embeddings in float64, so that layouts differ by less rounding than weights are compared to."""
    arguments = tiny.call_arguments(family, seed=seed) if double else {}
    return {name: value.double() for name, value in arguments.items() if name.endswith("embeds")}


def _at_home(folder: Path) -> Any:
    return mock.patch.dict("os.environ", {"FASTCACHE_HOME": str(folder)})


if __name__ == "__main__":
    report(main)
