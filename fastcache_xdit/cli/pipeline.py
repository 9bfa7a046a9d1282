"""What the commands that load a pipeline share: options from three places, the model, and call arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from fastcache_xdit.cli.arguments import check_least, fill, look_ahead, named_in, parse, read_options
from fastcache_xdit.cli.cache import check_flags
from fastcache_xdit.cli.offload import check_offload
from fastcache_xdit.cli.options.goals import goals_of
from fastcache_xdit.cli.options.pipeline import PipelineOptions
from fastcache_xdit.errors import UsageError
from fastcache_xdit.goal import GOALS
from fastcache_xdit.host.xdit import flags
from fastcache_xdit.host.xdit.layout import Layout
from fastcache_xdit.host.xdit.loading import default_dtype, xdit_options
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED, generation_defaults

CALL = (
    "num_inference_steps",
    "guidance_scale",
    "height",
    "width",
    "num_frames",
    "max_sequence_length",
    "negative_prompt",
)
# Flags of xDiT's that make the image: they belong to a job from submit on.
MAKES_THE_IMAGE = (
    "model", "dtype", "seed", "batch_size", "prompt", "prompts", "negative_prompt", "num_inference_steps",
    "guidance_scale", "height", "width", "max_sequence_length", "cache", "cache_method", "cache_config", "config",
    "num_frames", "fps", "pipeline", "lease", *GOALS,
)  # fmt: skip

# Flags that a job never sets for whoever runs it.
OF_WHO_RUNS = (
    "trust_remote_code", "download_dir", "use_ray", "ray_world_size", "coco_path", "img_file_path", "determinism_check",
    "determinism_check_report_ranks",
)  # fmt: skip


Options = TypeVar("Options", bound=PipelineOptions)
AddArguments = Callable[[Any], None]  # adds a command's own options to a group of its parser


def pipeline_options(kind: type[Options], argv: list[str], add_arguments: AddArguments) -> Options:
    """Read a command's options: command line over config file over the shipped model's own defaults over xDiT's.

    Args:
        kind: a subclass of `PipelineOptions`, which has a field for each option that `add_arguments` adds.
        argv: the words behind the command's name.
        add_arguments: adds the command's own options, `add_pipeline_arguments` among them.
    Raises:
        UsageError: an option that is not known, or a value that is not possible.
    """
    parser = engine_parser(add_arguments)
    ahead, _ = look_ahead(argv, "config", "model")
    values = read_options(parser, ahead.config, argv) if ahead.config else {}
    model = ahead.model or values.get("model")
    defaults = generation_defaults(model) if model in SHIPPED else {}
    parser.set_defaults(**{name: value for name, value in defaults.items() if name in CALL} | values)
    parsed = parse(parser, argv)
    check_flags(parsed, named_in(argv) | values.keys())
    check_offload(parsed, by_runner=False)
    parsed.dtype = parsed.dtype or default_dtype()
    parsed.negative_prompt = _one(parsed.negative_prompt)
    call = defaults | {name: given for name in CALL if (given := getattr(parsed, name)) not in (None, "", [])}
    xdit, layout = xdit_options(vars(parsed)), Layout.of(parsed)
    made = {"goals": goals_of(parsed), "call": call, "xdit": xdit, "layout": layout}
    return fill(kind, parsed, engine=_engine_options(parsed), **made)


def _one(texts: str | list[str] | None) -> str | None:
    """Return the negative prompt, which xDiT's parser takes as a list. Raises UsageError for several."""
    if not isinstance(texts, list):
        return texts
    if len(texts) > 1:
        problem = f"--negative_prompt is one text for all prompts, not {len(texts)}"
        raise UsageError(problem, "put it in quotes; batch takes one for each prompt, in its file")
    return texts[0] if texts else None


def _engine_options(parsed: argparse.Namespace) -> dict[str, Any]:
    plain = flags.parser(flags.ENGINE)
    names = sorted(kept_options(plain))
    return {name: given for name in names if (given := getattr(parsed, name)) != plain.get_default(name)}


def kept_options(parser: argparse.ArgumentParser) -> set[str]:
    """Name the options that a job keeps for those who run it: no place to fetch from, and nobody to call."""
    return {action.dest for action in parser._actions} - {*MAKES_THE_IMAGE, *OF_WHO_RUNS, "help"}


def engine_parser(add_arguments: AddArguments) -> argparse.ArgumentParser:
    """Make a parser of a command's own options and xDiT's engine flags."""
    parser: argparse.ArgumentParser = flags.parser(flags.ENGINE)
    add_arguments(parser.add_argument_group("options of the command"))
    parser._option_string_actions["--model"].required = False
    parser.set_defaults(model=None)
    return parser


def xdit_help(prog: str, kind: str) -> str:
    """Describe all flags of xDiT's that the command `prog` takes, a kind of `flags`."""
    register()
    parser = flags.parser(kind)
    parser.usage = f"{prog} [options]"
    return str(parser.format_help())


def call_arguments(options: PipelineOptions) -> dict[str, Any]:
    """Return the arguments of every pipeline call; those that only the shipped model knows come along.

    Raises:
        UsageError: a number below 1, or a seed that no generator takes.
    """
    sizes = ("num_inference_steps", "height", "width", "num_frames")
    check_least(1, **{name: options.call.get(name) for name in sizes}, batch_size=options.batch_size)
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"seed={options.seed} is not possible", "set a number from 0 to 2**63 - 1")
    return dict(options.call)
