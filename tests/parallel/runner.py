"""Use xDiT's own model runner on a tiny checkpoint, as its command line does."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy

from fastcache_xdit.host import cpu
from tests.parallel.ranks import take_down

MODELS = {"flux": "FLUX.1-dev", "sd3": "SD3.5"}


def image(family: str, checkpoint: str, prompt: str, steps: int, flags: list[str]) -> Any:
    """Run one request through xDiT's runner and return the image as an array, None on ranks without one."""
    cpu.prepare()
    from xfuser.config import FlexibleArgumentParser
    from xfuser.config.args import xFuserArgs
    from xfuser.runner import xFuserModelRunner

    _point(MODELS[family], checkpoint)
    parser = xFuserArgs.add_runner_args(FlexibleArgumentParser())
    size = ["--height", "128", "--width", "128", "--max_sequence_length", "32"]
    request = ["--prompt", prompt, "--num_inference_steps", str(steps), "--seed", "1", "--guidance_scale", "3.5"]
    arguments = vars(parser.parse_args(["--model", "tiny", *size, *request, *flags]))
    runner = xFuserModelRunner(arguments)
    inputs = runner.preprocess_args(arguments)
    runner.initialize(inputs)
    output, _ = runner.run(inputs)
    take_down()
    return numpy.asarray(output.images[0]) if output and output.images else None


def _point(name: str, checkpoint: str) -> None:
    """Register a runner model that is xDiT's own but for the place of its weights, which no flag can name."""
    from xfuser.model_executor.models.runner_models.base_model import MODEL_REGISTRY

    parent = MODEL_REGISTRY[name]
    settings = dataclasses.replace(parent.settings, model_name=checkpoint)
    MODEL_REGISTRY["tiny"] = type("Tiny", (parent,), {"settings": settings})
