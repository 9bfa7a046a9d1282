"""The forward that replaces a block's own while the cache is on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from fastcache_xdit.clock import Clock
from fastcache_xdit.models.spec import Streams, named
from fastcache_xdit.segments.segment import Block

Compute = Callable[..., Any]  # runs the original forward of a block, on its own image tokens or on given ones


def block_forward(block: Block, clock: Clock, run: Callable[[Streams, Compute], Any]) -> Callable[..., Any]:
    """Return a forward that calls `run` with the block's input streams and its original forward.

    Calls outside a tick of the clock run the original forward, as if there were no cache.
    """
    original = block.module.forward
    signature = inspect.signature(getattr(block.module, "_orig_mod", block.module).forward)

    @functools.wraps(original)
    @torch.compiler.disable(recursive=False)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if clock.now is None:
            return original(*args, **kwargs)

        def compute(hidden_states: torch.Tensor | None = None) -> Any:
            if hidden_states is None:
                return original(*args, **kwargs)
            changed = block.spec.with_hidden(signature.bind(*args, **kwargs), hidden_states)
            return original(*changed.args, **changed.kwargs)

        return run(block.spec.read(named(signature, args, kwargs)), compute)

    return forward
