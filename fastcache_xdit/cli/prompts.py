"""The prompts of a command line, which are plain texts; files are read as `batch` reads them."""

from __future__ import annotations

from pathlib import Path

from fastcache_xdit.cli.pipeline import PipelineOptions
from fastcache_xdit.errors import UsageError
from fastcache_xdit.jobs.prompts import numbered_prompts
from fastcache_xdit.jobs.recipe import BadLine, PromptLine, checked


def prompts_of(options: PipelineOptions) -> list[str]:
    """List the prompts of the command line, then those of the file.

    Raises:
        UsageError: no prompt at all, an empty one, or as `prompts_in`.
    """
    given = [_text(checked({"prompt": text}), "--prompt") for text in options.prompt or ()]
    prompts = [*given, *(prompts_in(options.prompts) if options.prompts else ())]
    if not prompts:
        raise UsageError("no prompts: give --prompt TEXT or --prompts FILE with one prompt per line")
    return prompts


def prompts_in(file: str) -> list[str]:
    """List the prompts in a file. Raises UsageError as `numbered_prompts`, or for a line that is bad, or has more."""
    return [_text(line, f"{Path(file).name}, line {number}") for number, line in numbered_prompts(file)]


def _text(line: PromptLine | BadLine, source: str) -> str:
    if isinstance(line, BadLine):
        raise UsageError(line.reason).of(source)
    if others := line.model_fields_set - {"prompt"}:
        names = ", ".join(sorted(others))
        raise UsageError(f"the prompts of this command are texts alone, without {names}", "use batch submit").of(source)
    return line.prompt
