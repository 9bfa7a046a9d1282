"""One request with partial steps, on one rank, and what they left behind."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from fastcache_xdit import FastCacheConfig, Handle, fastcache
from fastcache_xdit.clock import Tick
from fastcache_xdit.decision import significance
from fastcache_xdit.partial.balance import LocalTokens
from tests.parallel.cached import Answer, asked


@dataclass
class TokenAnswer(Answer):
    """An answer, and what partial steps left behind.

    `again` are the latents of the same request behind it. `kept` are the indices [B, K] of each partial step, by
    (step, patch); `rows` the keys and values [B, N, D] by (patch, name); `store` the largest difference between them
    and what xDiT's own store holds, by name.
    """

    again: torch.Tensor | None = None
    kept: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    rows: dict[tuple[int | None, str], torch.Tensor] = field(default_factory=dict)
    store: dict[str, float] = field(default_factory=dict)


REGION = torch.zeros(64, 64)
REGION[10:30, 20:60] = 1  # most of it in the first shard of two


def partly(
    pipe: Any, family: str, config: dict, twice: bool = False, objecting: bool = False, **request: Any
) -> TokenAnswer:
    """Run a request, or two, with a cache of its own, whose config has tokens.

    `objecting` lets the paper's test find every change significant, which it does for none below 100 %.
    """
    quantile = mock.patch.object(significance, "quantile", lambda alpha, dof: 0.0)
    with quantile if objecting else nullcontext(), fastcache(pipe, FastCacheConfig(**config)) as handle:
        kept = _watch(handle)
        if config["tokens"].get("score") == "region":
            handle.focus(REGION)
        answer = asked(handle, pipe, family, **request)
        rows = {key[1:]: known[0][1] for key, known in handle._session.driver.partial.keys_values._stored.items()}
        again = asked(handle, pipe, family, **request).latents if twice else None
        return TokenAnswer(**vars(answer), again=again, kept=kept, rows=rows, store=_in_store(handle, rows))


def _watch(handle: Handle) -> dict[tuple[int, int | None], torch.Tensor]:
    found = {}

    def watch(tick: Tick, kept: Any, scores: torch.Tensor) -> None:
        if isinstance(kept, LocalTokens):
            found[tick.step, tick.patch] = kept.selection.index

    handle._session.driver.partial.on_tokens = watch
    return found


def _in_store(handle: Handle, rows: dict[tuple[int | None, str], torch.Tensor]) -> dict[str, float]:
    """How far xDiT's store is from ours, where patches have keys of their own and none are exchanged before."""
    from xfuser.core.cache_manager.cache_manager import get_cache_manager
    from xfuser.core.distributed import get_runtime_state, get_sequence_parallel_world_size

    if get_sequence_parallel_world_size() > 1:
        return {}
    stores, found = get_cache_manager().cache, {}
    for block in handle._session.driver.segments[0].blocks:
        attention = block.spec.attentions[0]
        name = f"{block.name}.{attention} keys"
        patches = [rows[patch, name] for patch in range(8) if (patch, name) in rows]
        if patches:
            assert get_runtime_state().num_pipeline_patch == len(patches)
            theirs = stores["attn", getattr(block.module, attention)].tensors[0].chunk(2, dim=-1)[0]
            theirs = theirs.transpose(1, 2).flatten(2) if theirs.ndim == 4 else theirs  # heads apart before the store
            found[name] = (theirs - torch.cat(patches, dim=1)).abs().max().item()
    return found
