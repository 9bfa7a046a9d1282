"""Worker: xDiT's own ways of switching a cache on, after `register()`, in a script's own pipeline."""

from __future__ import annotations

import json
from typing import Any

import torch

from fastcache_xdit import register
from fastcache_xdit.host import cpu
from fastcache_xdit.plugin import applied
from tests import tiny
from tests.parallel.cached import EAGER, asked
from tests.parallel.ranks import engine, report, take_down

TEXT = json.dumps(EAGER)


def main() -> dict[str, Any]:
    cpu.prepare()
    register()
    register()
    return {
        "by argument": _built(engine(ulysses_degree=2), {"cache_method": "fastcache", "cache_config": TEXT}),
        "unknown": _refused(engine(ulysses_degree=2), {"cache_method": "nonsense"}),
        "no warm-up": _refused(engine(pipefusion_parallel_degree=2, warmup_steps=0), {"cache_method": "fastcache"}),
        "all lead": _refused(
            engine(pipefusion_parallel_degree=2),
            {"cache_method": "fastcache", "cache_config": '{"test": "paper", "lead_blocks": 4}'},
        ),
        "by flag": _built(_parsed("--cache", "fastcache", "--cache_config", TEXT), None),
        "no flag": len(_without_flag()),
    }


def _parsed(*flags: str) -> Any:
    """Make the engine config as xDiT's example scripts do."""
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    parser = xFuserArgs.add_cli_args(FlexibleArgumentParser())
    args = xFuserArgs.from_cli_args(parser.parse_args(["--model", "tiny", "--ulysses_degree", "2", *flags]))
    config, _ = args.create_config()
    config.runtime_config.dtype = torch.float32
    return config


def _pipe(config: Any, cache_args: dict | None) -> Any:
    import xfuser

    more = {} if cache_args is None else {"cache_args": cache_args}
    return xfuser.xFuserFluxPipeline(tiny.pipeline("flux"), config, **more)


def _built(config: Any, cache_args: dict | None) -> Any:
    before = len(applied())
    pipe = _pipe(config, cache_args)
    (handle,) = applied()[before:]
    answer = asked(handle, pipe, "flux")
    handle.disable()
    take_down()
    return answer


def _refused(config: Any, cache_args: dict) -> str:
    try:
        _pipe(config, cache_args)
    except (ValueError, KeyError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        take_down()
    return "nothing was raised"


def _without_flag() -> list:
    before = len(applied())
    _pipe(_parsed(), None)
    take_down()
    return applied()[before:]


if __name__ == "__main__":
    report(main)
