"""Floating-point operations of each block, counted while it runs."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from fastcache_xdit.host.base import Host
from fastcache_xdit.host.find import host_of
from fastcache_xdit.models.tried import Tried, all_tried
from fastcache_xdit.models.watch import block_lists
from fastcache_xdit.undo import Undo


def _attention_on_cpu(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Count attention on a CPU, which torch leaves out; the arithmetic is that of an accelerator."""
    return sdpa_flop_count(query, key, value)


_MISSING = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_on_cpu}


@contextlib.contextmanager
def counted(target: Any) -> Iterator[Counter[str]]:
    """Count FLOPs by block name of every call inside; meant for a warm-up, because counting is slow."""
    flops: Counter[str] = Counter()
    with Undo() as undo:
        for name, block in _blocks(host_of(target)):
            undo.set(block, "forward", _counting(name, block.forward, flops))
        yield flops


def _blocks(host: Host) -> Iterator[tuple[str, nn.Module]]:
    """Yield the blocks by name; of a model that is not known, what its lists hold that may be skipped."""
    if host.is_known:
        yield from ((block.name, block.module) for block in host.blocks)
        return
    always = all_tried().get(type(host.model).__name__, Tried()).computed
    for name, blocks in block_lists(host.model).items():
        if name in always:
            continue
        yield from ((f"{name}.{number}", block) for number, block in enumerate(blocks))


class _OneModule(contextlib.nullcontext):
    """Replace the counter's walk over the module tree, which never ends where a cache makes the tree cyclic."""

    parents = ("Global",)


def _counter() -> FlopCounterMode:
    counter = FlopCounterMode(display=False, custom_mapping=_MISSING)
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    return counter


@contextlib.contextmanager
def counted_steps(transformer: Any) -> Iterator[Counter[float]]:
    """Count FLOPs of each denoising step by its timestep, whatever a cache made of the transformer's calls.

    Calls of one timestep (branches of guidance, PipeFusion patches) are one step. It must begin after everything else
    that stands around the transformer.
    """
    steps: Counter[float] = Counter()

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        now = float(torch.as_tensor(kwargs["timestep"]).flatten()[0])
        with _counter() as counter:
            output = original(*args, **kwargs)
        steps[now] += counter.get_total_flops()
        return output

    with Undo() as undo:
        undo.wrap(transformer, "__call__", call)
        yield steps


def _counting(name: str, original: Callable[..., Any], flops: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with _counter() as counter:
            output = original(*args, **kwargs)
        flops[name] += counter.get_total_flops()
        return output

    return forward
