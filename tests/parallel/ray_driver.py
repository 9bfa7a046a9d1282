"""Driver: xDiT's own Ray pipeline from a script's command line with --cache fastcache, on two ranks without GPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy
import ray
import torch

from fastcache_xdit.host.xdit import engine, loading
from fastcache_xdit.host.xdit.replica import join
from fastcache_xdit.plugin import applied, register
from shapes.loading import generation_defaults, model_path

MODEL, CONFIG = str(model_path("shapes-pixart")), {"test": "paper", "error_budget": 2.0}
CALL = generation_defaults("shapes-pixart") | {"num_inference_steps": 6, "height": 64, "width": 64}
PROMPT, SEED = "a red circle on a dark background", 3


def main(folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RAY_USAGE_STATS_ENABLED="0")
    loading.prepare()
    register()
    image, reports = _on_ray()
    single, report = _alone()
    difference = float(numpy.abs(image.astype(float) - single.astype(float)).mean())
    (folder / "result.json").write_text(json.dumps({"reports": [*reports, report], "difference": difference}))


def _on_ray() -> tuple[numpy.ndarray, list[str]]:
    from xfuser import xFuserArgs, xFuserPixArtAlphaPipeline
    from xfuser.config import FlexibleArgumentParser

    words = ["--model", MODEL, "--use_ray", "--ray_world_size", "2", "--ulysses_degree", "2"]
    words += ["--cache", "fastcache", "--cache_config", json.dumps(CONFIG)]
    parser = xFuserArgs.add_cli_args(FlexibleArgumentParser())
    config, _ = xFuserArgs.from_cli_args(parser.parse_args(words)).create_config()
    hook = {"worker_process_setup_hook": "fastcache_xdit.plugin.register"}
    ray.init(num_gpus=2, include_dashboard=False, runtime_env=hook, log_to_driver=False)  # two that are not there
    from xfuser.ray.pipeline.pipeline_utils import RayDiffusionPipeline

    pipe = RayDiffusionPipeline.from_pretrained(xFuserPixArtAlphaPipeline, MODEL, config, torch_dtype=torch.float32)
    outputs = pipe(prompt=PROMPT, generator=torch.Generator("cpu").manual_seed(SEED), **CALL)
    reports = pipe._run_workers(pipe.workers, "fastcache_report")
    ray.shutdown()
    return numpy.asarray(next(images for images in outputs if images)[0]), reports


def _alone() -> tuple[numpy.ndarray, str]:
    join(replicas=1)
    single = engine.Engine(MODEL, loading.xdit_options({}), "float32")  # cached as well: the command line said so
    images = single.generate((engine.Request(0, PROMPT, SEED),), **CALL)
    return numpy.asarray(images[0]), str(applied()[-1].report())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
