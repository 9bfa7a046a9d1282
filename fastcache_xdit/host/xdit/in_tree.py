"""xDiT's own caches, switched on and off again: xDiT itself has no way back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def in_tree_cache(pipe: Any, method: str, steps: int, threshold: float) -> Iterator[None]:
    """`method` (teacache, fbcache or dbcache) on a pipeline for the length of a with block.

    Raises:
        Whatever xDiT raises where the method does not know the model.
    """
    from xfuser.model_executor.cache import apply_cache

    transformer = pipe.transformer
    attributes, modules = dict(vars(transformer)), dict(transformer._modules)
    config = json.dumps({"residual_diff_threshold": threshold})
    try:
        apply_cache(cache_method=method, num_steps=steps, pipe=pipe, transformer=transformer, cache_config=config)
        yield
    finally:
        vars(transformer).clear()
        vars(transformer).update(attributes)
        transformer._modules.clear()
        transformer._modules.update(modules)
