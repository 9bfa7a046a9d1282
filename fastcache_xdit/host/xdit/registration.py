"""Make `fastcache` a cache method of xDiT beside its own: flags, validation, and the places that apply a cache."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from fastcache_xdit.host.xdit import ray_workers
from fastcache_xdit.host.xdit.flags import ENGINE, METHOD, RUNNER
from fastcache_xdit.undo import Undo

Apply = Callable[[Any, "str | None"], Any]  # (pipeline, text of --cache_config)

_chosen: dict[str, str | None] = {}  # what a script's command line asked for, until a pipeline is built


def install(apply: Apply, hook: str, undo: Undo) -> None:
    """Patch xDiT so that `--cache fastcache` calls `apply` once a pipeline is ready; its own methods go on working.

    `hook` is the dotted name of what registers the plugin in another process, for xDiT's Ray workers.
    """
    _extend_flags(undo)
    _extend_runner(apply, undo)
    _extend_pipelines(apply, hook, undo)


def _extend_flags(undo: Undo) -> None:
    from xfuser import xFuserArgs

    for name, extra in ((RUNNER, _add_pipefusion_flags), (ENGINE, _add_nothing)):
        original = getattr(xFuserArgs, name)

        def add(parser: Any, original: Any = original, extra: Any = extra) -> Any:
            original(parser)
            extra(parser)
            return _add_method(parser)

        undo.set(xFuserArgs, name, staticmethod(functools.wraps(original)(add)))


def _add_method(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add `--cache` as a second name of `--cache_method`, which also takes `fastcache`."""
    flags = parser._option_string_actions
    method = flags["--cache_method"]
    method.choices = [*(method.choices or ()), METHOD]
    method.option_strings = [*method.option_strings, "--cache"]
    flags["--cache"] = method
    flags[
        "--cache_config"
    ].help = "Options of the cache method: a JSON object, or with --cache fastcache also a YAML or JSON file."
    return parser


def _add_pipefusion_flags(parser: argparse.ArgumentParser) -> None:
    """Add flags that the runner lacks although its configuration has the fields."""
    parser.add_argument("--warmup_steps", type=int, default=1, help="PipeFusion: first steps over the full sequence.")
    parser.add_argument("--num_pipeline_patch", type=int, default=None, help="PipeFusion: patches per step.")


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    pass


def _extend_runner(apply: Apply, undo: Undo) -> None:
    """Let validation of the runner's models pass, and dispatch by name in each module that imported the dispatcher."""
    from xfuser.model_executor import cache
    from xfuser.model_executor.cache import adapters
    from xfuser.model_executor.models.runner_models.base_model import xFuserModel
    from xfuser.model_executor.pipelines import base_pipeline

    validate = xFuserModel._validate_config
    dispatch = adapters.apply_cache

    @functools.wraps(validate)
    def _validate_config(self: Any, config: Any) -> None:
        if config.cache_method == METHOD:
            self.capabilities = dataclasses.replace(self.capabilities, supports_step_caching=True)
            self.settings.step_cache_config = {**(self.settings.step_cache_config or {}), METHOD: None}
        validate(self, config)

    @functools.wraps(dispatch)
    def apply_cache(cache_method: str, *args: Any, **kwargs: Any) -> Any:
        if cache_method != METHOD:
            return dispatch(cache_method, *args, **kwargs)
        apply(kwargs["pipe"], kwargs.get("cache_config"))
        return None

    undo.set(xFuserModel, "_validate_config", _validate_config)
    for module in (adapters, cache, base_pipeline):
        undo.set(module, "apply_cache", apply_cache)


def _extend_pipelines(apply: Apply, hook: str, undo: Undo) -> None:
    """Apply the command line's method to a pipeline wrapper once it is complete; xDiT would do it before, or forget."""
    from xfuser import xFuserArgs
    from xfuser.model_executor.pipelines.base_pipeline import xFuserPipelineBaseWrapper

    from_cli_args, build = xFuserArgs.from_cli_args.__func__, xFuserPipelineBaseWrapper.__init__

    @functools.wraps(from_cli_args)
    def remember(cls: Any, args: argparse.Namespace) -> Any:
        _chosen.clear()
        if getattr(args, "cache_method", None) == METHOD:
            _chosen[METHOD] = args.cache_config
            if args.use_ray:
                ray_workers.extend(apply, lambda: _chosen[METHOD], hook, undo)
        return from_cli_args(cls, args)

    @functools.wraps(build)
    def __init__(self: Any, pipeline: Any, engine_config: Any, cache_args: dict | None = None) -> None:
        asked = cache_args or ({"cache_method": METHOD, "cache_config": _chosen[METHOD]} if _chosen else {})
        if asked.get("cache_method") != METHOD:
            return build(self, pipeline, engine_config, cache_args)
        build(self, pipeline, engine_config)
        apply(self, asked.get("cache_config"))

    undo.set(xFuserArgs, "from_cli_args", classmethod(remember))
    undo.set(xFuserPipelineBaseWrapper, "__init__", __init__)
