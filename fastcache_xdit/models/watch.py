"""Watches one forward of a transformer: what each of its blocks is given and what it returns."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from fastcache_xdit.models.spec import named

LEAST_MODULES = 4  # of a block; a list of smaller things is one of layers


class BlockCall(NamedTuple):
    """One call of a block: its name, that of its list, its arguments by name, and what it returned."""

    name: str
    list_name: str
    arguments: dict[str, Any]
    output: Any


def block_lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the outermost lists of a model whose items may be blocks, by name."""
    return dict(_lists(model, ""))


def _lists(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList) and len(child) and all(_may_be_block(item) for item in child):
            yield path, child
        else:
            yield from _lists(child, f"{path}.")


def _may_be_block(item: nn.Module) -> bool:
    return not isinstance(item, nn.ModuleList) and sum(1 for _ in item.modules()) >= LEAST_MODULES


def watched(model: nn.Module, forward: Callable[[], Any]) -> list[BlockCall]:
    """Run a forward of the model and return the calls of all blocks, in the order in which they ended."""
    calls: list[BlockCall] = []
    with contextlib.ExitStack() as hooks:
        for list_name, blocks in block_lists(model).items():
            for number, block in enumerate(blocks):
                note = functools.partial(_note, calls, f"{list_name}.{number}", list_name, signature_of(block))
                hooks.callback(block.register_forward_hook(note, with_kwargs=True).remove)
        forward()
    return calls


def signature_of(block: nn.Module) -> inspect.Signature:
    """Return the signature of a block's forward, seen through `torch.compile`."""
    return inspect.signature(getattr(block, "_orig_mod", block).forward)


def _note(
    calls: list[BlockCall],
    name: str,
    list_name: str,
    signature: inspect.Signature,
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> None:
    calls.append(BlockCall(name, list_name, named(signature, args, kwargs), output))
