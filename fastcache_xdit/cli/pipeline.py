"""What the commands that load a pipeline share: options from three places, the model, prompts, and call arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import cache_config, check_least, look_ahead, parse, read_options
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import layout, registration
from fastcache_xdit.host.xdit.loading import DTYPES
from fastcache_xdit.shipped import SHIPPED, generation_defaults, model_path

CALL = (
    "num_inference_steps",
    "guidance_scale",
    "height",
    "width",
    "num_frames",
    "max_sequence_length",
    "negative_prompt",
)


def pipeline_options(command: str, argv: list[str], add_arguments: Callable[[argparse.ArgumentParser], None]) -> dict:
    """Command line over config file over the shipped model's own defaults over xDiT's."""
    parser = engine_parser(command, add_arguments)
    ahead, _ = look_ahead(argv, "config", "model")
    values = read_options(parser, ahead.config, argv) if ahead.config else {}
    model = ahead.model or values.get("model")
    defaults = generation_defaults(model) if model in SHIPPED else {}
    parser.set_defaults(**{name: value for name, value in defaults.items() if name in CALL} | values)
    return vars(parse(parser, argv)) | {"defaults": defaults}


def engine_parser(command: str, add_arguments: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """A parser of xDiT's engine flags and a command's own."""
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog=f"fastcache_xdit {command}")
    xFuserArgs.add_cli_args(parser)
    add_arguments(parser)
    parser._option_string_actions["--model"].required = False
    parser.set_defaults(model=None)
    return parser


def add_pipeline_arguments(group: Any, batch_size: int) -> None:
    """Options of every command that loads a pipeline, beside xDiT's engine flags."""
    group.add_argument("--config", metavar="FILE.yaml", help="options by name; flags win over it")
    group.add_argument("--prompts", metavar="FILE.txt", help="one prompt per line; # begins a comment line")
    group.add_argument("--batch_size", type=int, default=batch_size, help="prompts per call; default: %(default)s")
    group.add_argument("--dtype", choices=sorted(DTYPES), help="default: bfloat16, float32 without accelerator")


def model_folder(name: str | None) -> str:
    """A folder or a hub id.

    Raises:
        UsageError: nothing given, or no such folder and no id.
    """
    what = f"a folder, a hub id like ORG/NAME, or a shipped model: {', '.join(SHIPPED)}"
    if not name:
        raise UsageError(f"no model: give --model with {what}")
    if name in SHIPPED:
        return str(model_path(name))
    if not Path(name).is_dir() and (name.startswith(("/", ".", "~")) or name.count("/") != 1):
        raise UsageError(f"no such model: {name}", f"give {what}")
    return name


def call_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every pipeline call; those that only the shipped model knows come along.

    Raises:
        UsageError: a number below 1.
    """
    call = options["defaults"] | {name: options[name] for name in CALL if options[name] not in (None, "", [])}
    check_least(1, call, "num_inference_steps", "height", "width")
    check_least(1, options, "batch_size")
    return call


def chosen_cache(command: str, options: dict[str, Any]) -> FastCacheConfig | None:
    """The cache that is asked for, None for none.

    Raises:
        UsageError: a method of xDiT's own, an option that is not possible, or a layout that FastCache does not support.
    """
    method = options["cache_method"]
    if method is None:
        return None
    if method != registration.METHOD:
        raise UsageError(f"{command} knows --cache fastcache only, not {method}", "xDiT's own methods work with run")
    config = cache_config(options["cache_config"])
    check_cached_layout(config, options)
    return config


def check_cached_layout(config: FastCacheConfig, options: dict[str, Any]) -> None:
    """Raise UsageError for a layout that FastCache does not support with this config."""
    layout.check_cache(options)
    layout.check_decision(config, options["pipefusion_parallel_degree"])


def prompts_of(options: dict[str, Any]) -> list[str]:
    """Prompts of the command line, then of the file.

    Raises:
        UsageError: no such file, or no prompt at all.
    """
    prompts = list(options["prompt"] or [])
    if options["prompts"]:
        path = Path(options["prompts"])
        if not path.is_file():
            raise UsageError(f"no such prompts file: {path}")
        lines = [line.strip() for line in path.read_text().splitlines()]
        prompts += [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UsageError("no prompts: give --prompt TEXT or --prompts FILE with one prompt per line")
    return prompts
