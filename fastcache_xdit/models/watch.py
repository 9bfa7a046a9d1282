"""Watches one forward of a transformer: what each of its blocks is given and what it returns."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from fastcache_xdit.models.spec import named

LEAST_MODULES = 4  # of a block; a list of smaller things is one of layers
DEEPEST = 4  # containers in containers that are looked into


class BlockCall(NamedTuple):
    """One call of a block.

    Attributes:
        name: of the block.
        list_name: of its list.
        arguments: by name.
        output: what it returned.
        filled: the arguments, such as caches of keys and values, into which it wrote something.
    """

    name: str
    list_name: str
    arguments: dict[str, Any]
    output: Any
    filled: set[str]


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


def repeatable(forward: functools.partial[Any]) -> functools.partial[Any]:
    """Return a call that can be made again and again: lists that the model takes apart are copied for each time."""

    @functools.wraps(forward.func)
    def fresh(*args: Any, **kwargs: Any) -> Any:
        return forward.func(*_copied(args), **_copied(kwargs))

    return functools.partial(fresh, *forward.args, **forward.keywords)


def _copied(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(_copied(part) for part in value)
    return {name: _copied(part) for name, part in value.items()} if type(value) is dict else value


def watched(model: nn.Module, forward: Callable[[], Any]) -> list[BlockCall]:
    """Run a forward of the model and return the calls of all blocks, in the order in which they ended."""
    calls: list[BlockCall] = []
    with contextlib.ExitStack() as hooks:
        for block, (list_name, number) in _places(model).items():
            noter = _Noter(calls, f"{list_name}.{number}", list_name, signature_of(block))
            hooks.callback(block.register_forward_pre_hook(noter.before, with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(noter.after, with_kwargs=True).remove)
        forward()
    return calls


def _places(model: nn.Module) -> dict[nn.Module, tuple[str, int]]:
    """Return list and number of each block; one that is in several lists belongs to the longest."""
    places: dict[nn.Module, tuple[str, int]] = {}
    for name, blocks in sorted(block_lists(model).items(), key=lambda each: -len(each[1])):
        for number, block in enumerate(blocks):
            places.setdefault(block, (name, number))
    return places


def uncompiled(module: nn.Module) -> nn.Module:
    """Return what `torch.compile` was given to make this module; the module itself where it was not."""
    return getattr(module, "_orig_mod", module)


def signature_of(module: nn.Module) -> inspect.Signature:
    """Return the signature of a module's forward, seen through `torch.compile`."""
    return inspect.signature(uncompiled(module).forward)


@dataclass
class _Noter:
    """Notes the calls of one block."""

    calls: list[BlockCall]
    name: str
    list_name: str
    signature: inspect.Signature
    _before: dict[str, Any] = field(default_factory=dict)

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._before = _contents(named(self.signature, args, kwargs))

    def after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        arguments = named(self.signature, args, kwargs)
        filled = {name for name, held in _contents(arguments).items() if held != self._before.get(name)}
        self.calls.append(BlockCall(self.name, self.list_name, arguments, output, filled))


def _contents(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what the arguments hold: tensors by identity and state, others by identity."""
    return {name: _held(value, DEEPEST) for name, value in arguments.items()}


def _held(value: Any, depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        return id(value), _state(value)
    if isinstance(value, dict):
        parts = value
    elif isinstance(value, list | tuple):
        parts = dict(enumerate(value))
    else:
        parts = {} if isinstance(value, nn.Module | type) else getattr(value, "__dict__", {})
    if not parts or not depth:
        return id(value)
    return {key: _held(part, depth - 1) for key, part in parts.items()}


def _state(tensor: torch.Tensor) -> Any:
    """Return what writing into a tensor changes: its version, or its sum under `torch.inference_mode`, without one."""
    if not tensor.is_inference():
        return tensor._version
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return str(tensor.sum(dtype=wide).item())  # NaN is like itself
