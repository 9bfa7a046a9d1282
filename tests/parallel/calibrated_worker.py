"""Worker: calibrate a tiny PixArt under two layouts, then serve one of the files under each layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcache_xdit.tuning.api import calibrate
from tests import tiny
from tests.parallel.cached import STEPS, Answer, cached, uncached
from tests.parallel.ranks import layout, report

FAMILY, GUIDANCE = "pixart", 3.5


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
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    calls = [tiny.call_arguments(FAMILY, seed=20 + index) | settings for index in range(3)]
    calibrate(pipe, calls, output=path, lead_blocks=(1,))


if __name__ == "__main__":
    report(main)
