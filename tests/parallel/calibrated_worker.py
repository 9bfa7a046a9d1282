"""Worker: calibrate a tiny PixArt under two layouts, then serve one of the files under each layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch, Request
from fastcache_xdit.tuning.calibrate import Calibrator, Coverage
from fastcache_xdit.tuning.runner import Runner
from tests.parallel.cached import STEPS, Answer, cached, uncached
from tests.parallel.ranks import generate, layout, report

FAMILY, GUIDANCE = "pixart", 3.5


class SeededEngine:
    """What a `Runner` needs of an engine: one request from seeded embeddings for each batch."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def generate(self, batch: Batch, num_inference_steps: int, **_: Any) -> dict[int, torch.Tensor]:
        latents = generate(self.pipe, FAMILY, steps=num_inference_steps, guidance=GUIDANCE, seed=batch[0].seed)
        return {} if latents is None else {batch[0].index: latents[0]}


def main(
    folder: str, calibrated: dict[str, dict], served: dict[str, dict], configs: dict[str, dict]
) -> dict[str, dict[str, Answer]]:
    for name, degrees in calibrated.items():
        with layout(FAMILY, **degrees) as pipe:
            _calibrate(pipe, Path(folder) / f"{name}.safetensors")
    answers = {}
    for name, degrees in served.items():
        with layout(FAMILY, **degrees) as pipe:
            runs = {run: cached(pipe, FAMILY, config, seed=9) for run, config in configs.items()}
            answers[name] = {"uncached": uncached(pipe, FAMILY, seed=9), **runs}
    return answers


def _calibrate(pipe: Any, path: Path) -> None:
    runner = Runner(SeededEngine(pipe), {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE})
    batches = [(Request(index, "", 20 + index),) for index in range(3)]
    calibrator = Calibrator(runner, batches, path, Coverage((1,)), facts={"prompts": len(batches)})
    calibration = calibrator.run(lambda *_: None)
    if world.rank() == 0:
        calibration.save(path)


if __name__ == "__main__":
    report(main)
