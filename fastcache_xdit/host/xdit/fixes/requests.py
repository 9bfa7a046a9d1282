"""Fixes for what xDiT computes at the start of a request: patch heights and the number of warm-up steps."""

from __future__ import annotations

import importlib
import weakref
from typing import Any

from fastcache_xdit.undo import Undo


def unequal_patches(undo: Undo) -> bool:
    """Give every sequence rank an equal part of each PipeFusion patch (defect D6).

    xDiT lists the parts rank by rank and reads the list patch by patch. That makes no difference while all patches are
    equal; if the last one is shorter, ranks hold different token counts of a patch and cannot exchange heads.
    """
    module = importlib.import_module("xfuser.core.distributed.runtime_state")
    kind = module.DiTRuntimeState
    original = kind._calc_patches_metadata

    def calculate(self) -> None:
        original(self)
        degree = module.get_sequence_parallel_world_size()
        if degree > 1 and self.num_pipeline_patch > 1:
            _share_out(self, degree, module.get_sequence_parallel_rank())

    undo.set(kind, "_calc_patches_metadata", calculate)
    if module.runtime_state_is_initialized():
        module.get_runtime_state().ready = False  # sizes of an earlier request must be computed again
    return True


def _share_out(state: Any, degree: int, rank: int) -> None:
    spans = rank_spans(patch_heights(state, degree), degree, rank)
    size = state.backbone_patch_size
    row = state.input_config.width // state.vae_scale_factor // size  # tokens in one row of the image
    counts = [row * ((end - start) // size) for start, end in spans]
    state.pp_patches_height = [end - start for start, end in spans]
    state.pp_patches_start_idx_local = running_sums(state.pp_patches_height)
    state.pp_patches_start_end_idx_global = spans
    state.pp_patches_token_num = counts
    state.pp_patches_token_start_idx_local = running_sums(counts)
    state.pp_patches_token_start_end_idx_global = [[row * (at // size) for at in span] for span in spans]


def patch_heights(state: Any, degree: int) -> list[int]:
    """Return the height of each pipeline patch in latent rows, all sequence ranks together, rounded as in xDiT."""
    height = state.input_config.height // state.vae_scale_factor
    unit = degree * state.backbone_patch_size
    requested = -(-height // state.parallel_config.pp_config.num_pipeline_patch)
    full, count = -(-requested // unit) * unit, state.num_pipeline_patch
    return [full] * (count - 1) + [height - full * (count - 1)]


def rank_spans(heights: list[int], degree: int, rank: int) -> list[list[int]]:
    """Return where this rank's part of each patch starts and ends in the image.

    >>> rank_spans([8, 8, 4], degree=2, rank=1)
    [[4, 8], [12, 16], [18, 20]]
    """
    starts = running_sums(heights)
    sizes = [height // degree for height in heights]
    return [[start + rank * size, start + (rank + 1) * size] for start, size in zip(starts, sizes, strict=False)]


def running_sums(values: list[int]) -> list[int]:
    """Return the sums of the first 0, 1, ... values."""
    return [sum(values[:count]) for count in range(len(values) + 1)]


def warmup_clamp(undo: Undo) -> bool:
    """Restore the configured number of warm-up steps after a short request (defect D8).

    A request with fewer steps than warm-up steps lowers the setting permanently, so that later requests leave the
    synchronous steps too early. A value that the user sets in between is kept.
    """
    kind = importlib.import_module("xfuser.core.distributed.runtime_state").DiTRuntimeState
    clamped: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()
    for name in ("set_input_parameters", "set_video_input_parameters"):
        undo.set(kind, name, _restoring(getattr(kind, name), clamped))
    return True


def _restoring(original: Any, clamped: weakref.WeakKeyDictionary) -> Any:
    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        settings = self.runtime_config
        configured, lowered = clamped.get(self, (settings.warmup_steps, settings.warmup_steps))
        if settings.warmup_steps == lowered:
            settings.warmup_steps = configured
        configured = settings.warmup_steps
        original(self, *args, **kwargs)
        clamped[self] = (configured, settings.warmup_steps)

    return set_parameters
