"""The host for xDiT pipelines and transformers: unwrapping, topology, PipeFusion patches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.clock import Clock, Patch
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.base import Host, Skips
from fastcache_xdit.host.diffusers import others_of, refuse_rivals, transformer_of
from fastcache_xdit.host.xdit import layout
from fastcache_xdit.host.xdit.fixes import apply_fixes
from fastcache_xdit.host.xdit.pipefusion import ahead, keys_values
from fastcache_xdit.models.watch import uncompiled
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.segment import Block, Span
from fastcache_xdit.undo import Undo


def is_xdit(target: Any) -> bool:
    """Return whether this pipeline or transformer is one of xDiT's, without importing xfuser."""
    parts = (target, getattr(target, "transformer", None))
    return any(base.__module__.startswith("xfuser.") for part in parts for base in type(part).__mro__)


def ranks_share_requests() -> bool:
    """Return whether xDiT's groups divide each request among ranks, without importing xfuser.

    A plain pipeline of such a process was made parallel by hand: its patched forward and attention use these groups.
    """
    groups = sys.modules.get("xfuser.core.distributed.parallel_state")
    return groups is not None and groups.model_parallel_is_initialized() and topology().replica_size > 1


class XditHost(Host):
    """An xDiT pipeline wrapper, a diffusers pipeline with an xDiT transformer, or that transformer.

    Also a plain diffusers pipeline or transformer where `ranks_share_requests`.

    Raises:
        UsageError: there is no transformer, another cache is on, or FastCache does not support the layout.
    """

    def __init__(self, target: Any) -> None:
        transformer = target if isinstance(target, nn.Module) else transformer_of(target)
        model = _inner(transformer)
        refuse_rivals(model)
        _refuse_no_warmup()
        super().__init__(transformer, model, None if target is transformer else getattr(target, "scheduler", None))
        self.others, self.boundary = others_of(target)
        self.topology = topology()
        if not is_xdit(target):
            _refuse_stages_by_hand(self.topology)
        self.spans = _spans(transformer)
        self.rules_out_partial = _rules_out_partial()
        self.can_run_ahead = ahead.possible(target)
        self.pipe = None if target is transformer else target

    @property
    def device(self) -> torch.device:
        """The device of this rank; parameters that are offloaded may be elsewhere."""
        from xfuser.core.distributed import get_world_group

        return get_world_group().device

    def current_patch(self) -> Patch | None:
        """Return the PipeFusion patch of the current call; None for the full local sequence."""
        from xfuser.core.distributed import get_runtime_state

        if self.topology.pipefusion_parallel_degree == 1 or not (state := get_runtime_state()).patch_mode:
            return None
        number, bounds = state.pipeline_patch_idx, state.pp_patches_token_start_idx_local
        return Patch(number, (bounds[number], bounds[number + 1]), number == state.num_pipeline_patch - 1)

    def fix(self, undo: Undo) -> list[str]:
        """Fix the defects of xDiT that this layout can meet, and return their names."""
        return apply_fixes(undo)

    def extend_keys_values(
        self, undo: Undo, clock: Clock, layers: Mapping[nn.Module, str], forecast: KeysValuesForecast | None
    ) -> Callable[[], int]:
        """Extend xDiT's store of keys and values; without PipeFusion no key is stale, and nothing is done."""
        if self.topology.pipefusion_parallel_degree == 1:
            return lambda: 0
        return keys_values.install(undo, clock, layers, forecast)

    def run_ahead(self, undo: Undo, session: Session, skips: Skips, first_block: Block | None) -> None:
        """Pass only the computed steps to the loops of all stages; the last stage runs the skipped ones."""
        ahead.install(self.pipe, undo, session, skips, first_block)


def topology() -> Topology:
    """Return xDiT's parallel degrees and this rank; those of one process where diffusers runs a pipeline alone.

    Raises:
        UsageError: the parameters are fully sharded.
    """
    from xfuser.core import distributed as xdit

    if not xdit.parallel_state.model_parallel_is_initialized():
        return Topology()
    if xdit.parallel_state.get_fully_shard_world_size() > 1:
        raise UsageError("fully_shard_degree > 1 with fastcache is not supported yet", "set fully_shard_degree=1")
    return Topology(
        rank=xdit.get_world_group().rank,
        tensor_parallel_degree=xdit.get_tensor_model_parallel_world_size(),
        sequence_parallel_degree=xdit.get_sequence_parallel_world_size(),
        pipefusion_parallel_degree=xdit.get_pipeline_parallel_world_size(),
        cfg_degree=xdit.get_classifier_free_guidance_world_size(),
        data_parallel_degree=xdit.get_data_parallel_world_size(),
    )


def _refuse_stages_by_hand(topology: Topology) -> None:
    if topology.pipefusion_parallel_degree > 1:
        raise UsageError(
            "a plain diffusers pipeline is not supported where xDiT's groups have PipeFusion stages",
            "use xDiT's own pipeline class, or sequence, CFG and tensor parallelism",
        )


def _rules_out_partial() -> str:
    """Name a feature that needs the queries of all tokens: FP8 communication packs them with the keys."""
    from xfuser.core.distributed import get_runtime_state, runtime_state

    is_on = runtime_state.runtime_state_is_initialized() and getattr(get_runtime_state(), "fp8_comms", None) is not None
    return "xDiT's FP8 communication" if is_on else ""


def _refuse_no_warmup() -> None:
    from xfuser.core.distributed import get_pipeline_parallel_world_size, get_runtime_state

    if get_pipeline_parallel_world_size() > 1:
        layout.check_warmup(get_runtime_state().runtime_config.warmup_steps)


def _inner(transformer: nn.Module) -> nn.Module:
    """Return the model that holds the blocks: inside xDiT's wrapper, or the transformer itself in a runner model."""
    from xfuser.model_executor.base_wrapper import xFuserBaseWrapper

    plain = uncompiled(transformer)
    return plain.module if isinstance(plain, xFuserBaseWrapper) else plain


def _spans(transformer: nn.Module) -> dict[str, Span]:
    """Return the part of each block list that this stage holds; nothing if xDiT has not cut the lists."""
    from xfuser.core.distributed import get_pipeline_parallel_rank, get_pipeline_parallel_world_size, get_runtime_state

    lists = vars(transformer).get("blocks_idx")  # by list, its first and last block number in the whole model
    if not lists:
        return {}
    total, num_stages = max(stop for _, stop in lists.values()), get_pipeline_parallel_world_size()
    layers = (
        get_runtime_state().parallel_config.pp_config.attn_layer_num_for_pp or [-(-total // num_stages)] * num_stages
    )
    first = sum(layers[: get_pipeline_parallel_rank()])
    return {name: Span(max(0, first - start), stop - start) for name, (start, stop) in lists.items()}
