"""What stands around the calls of a block while the cache is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastcache_xdit.clock import Clock
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.models.watch import signature_of
from fastcache_xdit.segments.segment import Block
from fastcache_xdit.wrapping import Around

Compute = Callable[..., Any]  # runs the original call of a block, on its own image tokens or on given ones


def block_call(block: Block, clock: Clock, run: Callable[[Streams, Compute], Any]) -> Around:
    """Return what stands around the calls of a block: `run` with its input streams and its original call.

    Calls outside a tick of the clock, as those of other threads, run the original, as if there were no cache.
    """
    signature = signature_of(block.module)
    read = block.spec.reader(signature)

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if clock.now is None:
            return original(*args, **kwargs)

        def compute(hidden_states: torch.Tensor | None = None) -> Any:
            if hidden_states is None:
                return original(*args, **kwargs)
            changed = block.spec.with_hidden(signature.bind(*args, **kwargs), hidden_states)
            return original(*changed.args, **changed.kwargs)

        return run(read(args, kwargs), compute)

    return call
