"""xDiT pipelines and transformers: unwrapping, topology, PipeFusion patches."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.base import Host, PatchView
from fastcache_xdit.host.diffusers import refuse_rivals, transformer_of
from fastcache_xdit.host.xdit import layout
from fastcache_xdit.host.xdit.fixes import apply_fixes
from fastcache_xdit.host.xdit.pipefusion import ahead, keys_values
from fastcache_xdit.parallel.topology import Topology


def is_xdit(target: Any) -> bool:
    """Whether xDiT made this pipeline or transformer; does not import xfuser."""
    parts = (target, getattr(target, "transformer", None))
    return any(base.__module__.startswith("xfuser.") for part in parts for base in type(part).__mro__)


def xdit_host(target: Any) -> Host:
    """The host of an xDiT pipeline wrapper, a diffusers pipeline with an xDiT transformer, or that transformer.

    Raises:
        UsageError: no transformer, another cache already on, or a layout that FastCache does not support.
    """
    transformer = target if isinstance(target, nn.Module) else transformer_of(target)
    model = _inner(transformer)
    refuse_rivals(model)
    _refuse_no_warmup()
    first, spans = _stage_blocks(transformer)
    return Host(
        transformer=transformer,
        model=model,
        scheduler=None if target is transformer else getattr(target, "scheduler", None),
        topology=topology(),
        patch=current_patch,
        offsets={name: max(0, first - start) for name, (start, _) in spans.items()},
        lengths={name: stop - start for name, (start, stop) in spans.items()},
        whole_only=_whole_only(),
        fixes=apply_fixes,
        forecast=keys_values.install,
        ahead=functools.partial(ahead.install, target) if ahead.possible(target) else None,
    )


def topology() -> Topology | None:
    """xDiT's degrees and this rank; None in a single process. Raises UsageError for fully sharded parameters."""
    from xfuser.core import distributed as xdit

    degrees = dict(
        tensor_parallel_degree=xdit.get_tensor_model_parallel_world_size(),
        sequence_parallel_degree=xdit.get_sequence_parallel_world_size(),
        pipefusion_parallel_degree=xdit.get_pipeline_parallel_world_size(),
        cfg_degree=xdit.get_classifier_free_guidance_world_size(),
        data_parallel_degree=xdit.get_data_parallel_world_size(),
    )
    if xdit.parallel_state.get_fully_shard_world_size() > 1:
        raise UsageError("fully_shard_degree > 1 with fastcache is not supported yet", "set fully_shard_degree=1")
    found = Topology(rank=xdit.get_world_group().rank, **degrees)
    return found if found.world_size > 1 else None


def current_patch() -> PatchView | None:
    """The PipeFusion patch that is being computed, or None while the full local sequence is."""
    from xfuser.core.distributed import get_pipeline_parallel_world_size, get_runtime_state

    state = get_runtime_state()
    if get_pipeline_parallel_world_size() == 1 or not state.patch_mode:
        return None
    index, bounds = state.pipeline_patch_idx, state.pp_patches_token_start_idx_local
    return PatchView(index, (bounds[index], bounds[index + 1]), index == state.num_pipeline_patch - 1)


def _whole_only() -> str:
    """FP8 communication packs queries with keys, and tells padded text by the number of queries."""
    from xfuser.core.distributed import get_runtime_state, runtime_state

    on = runtime_state.runtime_state_is_initialized() and getattr(get_runtime_state(), "fp8_comms", None) is not None
    return "xDiT's FP8 communication" if on else ""


def _refuse_no_warmup() -> None:
    from xfuser.core.distributed import get_pipeline_parallel_world_size, get_runtime_state

    if get_pipeline_parallel_world_size() > 1:
        layout.check_warmup(get_runtime_state().runtime_config.warmup_steps)


def _inner(transformer: nn.Module) -> nn.Module:
    """The diffusers model inside xDiT's composing wrapper; runner models are subclasses and hold their own blocks."""
    from xfuser.model_executor.base_wrapper import xFuserBaseWrapper

    return transformer.module if isinstance(transformer, xFuserBaseWrapper) else transformer


def _stage_blocks(transformer: nn.Module) -> tuple[int, dict[str, tuple[int, int]]]:
    """Global index of this stage's first block, and the span of each block list over the whole model."""
    from xfuser.core.distributed import get_pipeline_parallel_rank, get_pipeline_parallel_world_size, get_runtime_state

    spans = vars(transformer).get("blocks_idx")
    if spans is None:
        return 0, {}
    total, stage = max(stop for _, stop in spans.values()), get_pipeline_parallel_rank()
    layers = get_runtime_state().parallel_config.pp_config.attn_layer_num_for_pp
    if layers is None:
        layers = [-(-total // get_pipeline_parallel_world_size())] * get_pipeline_parallel_world_size()
    return sum(layers[:stage]), spans
