"""Fixes for how PipeFusion stores the keys and values of patches that are not being computed."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from fastcache_xdit.undo import Undo


def once(undo: Undo) -> bool:
    """Store the keys and values of joint attention once per call (defects D1, D2).

    SD3 and FLUX.2 store them in their attention processor and then pass the layer to the sequence-parallel attention,
    which finds the same store and stores them again; without sequence parallelism the first asynchronous step fails
    because sizes differ. There, only stores of the kind that is made for that attention may be used.
    """
    usp = importlib.import_module("xfuser.model_executor.layers.usp")
    stores = importlib.import_module("xfuser.core.cache_manager.cache_manager").get_cache_manager().cache

    def has_kv_cache(layer: Any) -> bool:
        entry = stores.get(("attn", layer)) if layer is not None else None
        return entry is not None and entry.cache_type != "naive_cache"

    undo.set(usp, "_has_kv_cache", has_kv_cache)
    return True


def by_patch(undo: Undo) -> bool:
    """Store keys and values patch by patch from the first step on (defect D3).

    Under Ulysses the synchronous steps store them rank by rank, but the asynchronous steps write each patch into its
    own slot: the first patch overwrites rows of another one, which are missing until that one has run.
    """
    manager = importlib.import_module("xfuser.core.cache_manager.cache_manager").CacheManager
    distributed = importlib.import_module("xfuser.core.distributed")
    original = manager._sequence_parallel_cache_update

    def update(self, new_kv: torch.Tensor, layer: Any, slice_dim: int = 1, layer_type: str = "attn"):
        state = distributed.get_runtime_state()
        if state.num_pipeline_patch > 1 and not state.patch_mode:
            degree = distributed.get_ulysses_parallel_world_size()
            new_kv = patch_major(new_kv, degree, state.pp_patches_token_num, slice_dim)
        return original(self, new_kv, layer, slice_dim, layer_type)

    undo.set(manager, "_sequence_parallel_cache_update", update)
    return True


def patch_major(rows: torch.Tensor, ranks: int, patches: list[int], dim: int) -> torch.Tensor:
    """Reorder rows from (rank, patch, token) to (patch, rank, token); `patches` are one rank's token counts."""
    parts = [part.split(patches, dim=dim) for part in rows.chunk(ranks, dim=dim)]
    return torch.cat([parts[rank][patch] for patch in range(len(patches)) for rank in range(ranks)], dim=dim)
