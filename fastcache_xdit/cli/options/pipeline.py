"""What all commands that load a pipeline take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastcache_xdit.host.xdit.flags import DTYPE_NAMES
from fastcache_xdit.host.xdit.layout import Layout

if TYPE_CHECKING:
    from fastcache_xdit.host.xdit.loading import XditOptions


@dataclass(frozen=True, kw_only=True)
class PipelineOptions:
    """Options of every command that loads a pipeline; a command's own are added in a subclass.

    Attributes:
        model: a folder, a hub id or a shipped model, as given; see `model_folder`.
        prompt: prompts of the command line.
        prompts: file of prompts.
        seed: of the first prompt's start noise.
        batch_size: prompts per call.
        dtype: of weights and activations, one of `DTYPE_NAMES`.
        cache_method: `fastcache`, a method of xDiT's own, or None.
        cache_config: JSON object or file, for `chosen_cache`.
        goals: of the command line, for `chosen_cache`; at most one is possible.
        call: arguments of every pipeline call, unchecked; see `call_arguments`.
        xdit: all of xDiT's options.
        layout: those of them that say how the work is divided.
        engine: those of them that differ from xDiT's defaults and do not make the image, as a job keeps them.
    """

    model: str | None
    prompt: tuple[str, ...] | None
    prompts: str | None
    seed: int
    batch_size: int
    dtype: str
    cache_method: str | None
    cache_config: str | None
    goals: Mapping[str, float]
    call: Mapping[str, Any]
    xdit: XditOptions
    layout: Layout
    engine: Mapping[str, Any]


def add_pipeline_arguments(group: Any, batch_size: int) -> None:
    """Add the options of every command that loads a pipeline, beside xDiT's engine flags."""
    group.add_argument("--config", metavar="FILE.yaml", help="options by name; flags win over it")
    group.add_argument(
        "--prompts", metavar="FILE", help="prompts: .txt (one a line, # begins a comment), .jsonl, .csv or .parquet"
    )
    group.add_argument("--batch_size", type=int, default=batch_size, help="prompts per call; default: %(default)s")
    group.add_argument("--dtype", choices=DTYPE_NAMES, help="default: bfloat16, float32 without accelerator")
