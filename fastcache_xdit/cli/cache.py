"""The cache of a command line: its config, given as a preset, a file or JSON; and flags that are not the cache's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.options.goals import refuse_goals
from fastcache_xdit.cli.options.pipeline import PipelineOptions
from fastcache_xdit.cli.options.values import named_config
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit.flags import METHOD
from fastcache_xdit.host.xdit.layout import Layout, check_cache


def cache_config(
    text: str | None, goals: Mapping[str, float] | None = None, model: str | None = None
) -> FastCacheConfig:
    """Build the config that `--cache_config` names, with a goal of its own.

    Args:
        text: a JSON object, a YAML or JSON file, or the name of a preset of a shipped model; None for the defaults.
        goals: of the command line.
        model: whose presets are meant.
    Raises:
        UsageError: as `named_config`; or its calibration is missing, broken or
            altered; or there are two goals, or one for a config that plans nothing.
    """
    config = named_config(text, model)
    if goals:
        config = FastCacheConfig.from_dict(config.to_dict() | dict(goals))
    if config.calibration:
        Calibration.cached(config.calibration)  # what is wrong with the file is said before a model loads
    return config


def chosen_cache(command: str, options: PipelineOptions) -> FastCacheConfig | None:
    """Build the config of the cache that is asked for; None for no cache.

    Raises:
        UsageError: a method of xDiT's own, a goal without the cache, an impossible option, or an unsupported layout.
    """
    if options.cache_method is None:
        refuse_goals(options.goals)
        return None
    if options.cache_method != METHOD:
        raise UsageError(
            f"{command} knows --cache fastcache only, not {options.cache_method}", "xDiT's own methods work with run"
        )
    config = cache_config(options.cache_config, options.goals, options.model)
    check_cache(options.layout, config)
    return config


def check_flags(parsed: argparse.Namespace, given: Collection[str]) -> None:
    """Raise UsageError for flags that look like the cache's own and would have no effect.

    Args:
        parsed: the command line.
        given: names of the options that it gives.
    """
    if parsed.cache_config and not parsed.cache_method:
        raise UsageError("--cache_config without --cache: nothing would be cached", f"add --cache {METHOD}")
    if parsed.cache_method != METHOD:
        return
    if "threshold" in given and not getattr(parsed, "use_fast_attn", False):
        advice = "say how much is skipped by --budget, --speedup or --psnr"
        raise UsageError(f"--threshold is of xDiT's DiTFastAttn, and has no effect with --cache {METHOD}", advice)
    if "warmup_steps" in given and Layout.of(parsed).pipefusion_parallel_degree == 1:
        own = json.dumps({"warmup_steps": parsed.warmup_steps})
        raise UsageError(
            "--warmup_steps is of xDiT's PipeFusion, and has no effect without it",
            f"the cache's own is an option of its config: --cache_config '{own}'",
        )
