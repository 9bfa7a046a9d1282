"""What xDiT works out at the start of a request: the heights of patches and the number of warm-up steps."""

from __future__ import annotations

import importlib
import weakref
from typing import Any

from fastcache_xdit.undo import Undo


def unequal_patches(undo: Undo) -> bool:
    """Give every sequence rank the same share of each pipeline patch (defect D6).

    xDiT lists the shares rank by rank and reads the list patch by patch. That is the same while all patches are
    equal; where the last one is shorter, ranks hold different token counts for one patch and cannot exchange heads.
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
        module.get_runtime_state().ready = False  # sizes of an earlier request have to be worked out again
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
    """Return the height of each pipeline patch in latent rows, all sequence ranks together, as xDiT rounds it."""
    height = state.input_config.height // state.vae_scale_factor
    unit = degree * state.backbone_patch_size
    asked = -(-height // state.parallel_config.pp_config.num_pipeline_patch)
    full, count = -(-asked // unit) * unit, state.num_pipeline_patch
    return [full] * (count - 1) + [height - full * (count - 1)]


def rank_spans(heights: list[int], degree: int, rank: int) -> list[list[int]]:
    """Return where this rank's share of each patch starts and ends in the image.

    >>> rank_spans([8, 8, 4], degree=2, rank=1)
    [[4, 8], [12, 16], [18, 20]]
    """
    starts = running_sums(heights)
    shares = [height // degree for height in heights]
    return [[at + rank * share, at + (rank + 1) * share] for at, share in zip(starts, shares, strict=False)]


def running_sums(values: list[int]) -> list[int]:
    """Return the sums of the first 0, 1, ... values."""
    return [sum(values[:count]) for count in range(len(values) + 1)]


def warmup_clamp(undo: Undo) -> bool:
    """Keep the configured warm-up when a short request is over (defect D8).

    A request with fewer steps than warm-up steps lowers the setting itself, and nothing raises it again: later
    requests leave the synchronous steps too early. A value set by the user in between is the new setting.
    """
    kind = importlib.import_module("xfuser.core.distributed.runtime_state").DiTRuntimeState
    clamped: weakref.WeakKeyDictionary[Any, tuple[int, int]] = weakref.WeakKeyDictionary()
    for name in ("set_input_parameters", "set_video_input_parameters"):
        undo.set(kind, name, _restoring(getattr(kind, name), clamped))
    return True


def _restoring(original: Any, clamped: weakref.WeakKeyDictionary) -> Any:
    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        settings = self.runtime_config
        configured, left = clamped.get(self, (settings.warmup_steps, settings.warmup_steps))
        if settings.warmup_steps == left:
            settings.warmup_steps = configured
        configured = settings.warmup_steps
        original(self, *args, **kwargs)
        clamped[self] = (configured, settings.warmup_steps)

    return set_parameters
