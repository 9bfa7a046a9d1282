"""Switch xDiT's own caches on and off again; xDiT itself has no way back."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.host.xdit import world


@contextlib.contextmanager
def in_tree_cache(pipe: Any, method: str, steps: int, threshold: float) -> Iterator[None]:
    """Use `method` (teacache, fbcache or dbcache) on a pipeline of this one process for the length of a with block.

    Raises:
        Exception: whatever xDiT raises where the method does not know the model.
    """
    from xfuser.model_executor.cache import apply_cache

    _start_groups()
    transformer = pipe.transformer
    attributes, modules = dict(vars(transformer)), dict(transformer._modules)
    config = json.dumps({"residual_diff_threshold": threshold})
    try:
        apply_cache(cache_method=method, num_steps=steps, pipe=pipe, transformer=transformer, cache_config=config)
        yield
    finally:
        if method == "dbcache" and "cache_dit" in sys.modules:
            sys.modules["cache_dit"].disable_cache(pipe)  # it patched the pipeline's class
        vars(transformer).clear()
        vars(transformer).update(attributes)
        transformer._modules.clear()
        transformer._modules.update(modules)


def _start_groups() -> None:
    """Start xDiT's process groups with this process alone, because dbcache reads its layout from them."""
    from xfuser.core import distributed

    world.be_alone()
    if not distributed.model_parallel_is_initialized():
        distributed.init_distributed_environment(rank=0, world_size=1)
        distributed.initialize_model_parallel()
