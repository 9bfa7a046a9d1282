"""Derives how a transformer's blocks are called from the dataflow of a watched forward; no names are assumed.

A stream is what one block returns and the next one is given: the same tensor, or where something rearranges it in
between one of the same shape. A block whose stream is not what the block before it returned is a joint. The forward is
watched twice, the second time with other latents: a list whose streams stay as they were works on the text alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fastcache_xdit.errors import UsageError
from fastcache_xdit.models.spec import ENCODER, HIDDEN, BlockSpec, ModelSpec
from fastcache_xdit.models.streams import Unclear, fits, outputs_of, stream_arguments
from fastcache_xdit.models.watch import BlockCall, watched

Anywhere = Callable[[list[bool]], list[bool]]
NONE = "they are looked for in lists (torch.nn.ModuleList), of which none ran"
LEAST_SHARE = 1 / 3  # of the parameters in blocks that can be skipped to those in other blocks


class Unskippable(UsageError):
    """The blocks of a model cannot be skipped, but its output can be stood in for."""


def derive(model: nn.Module, forward: partial[Any], add_up: Callable[[torch.Tensor], torch.Tensor]) -> ModelSpec:
    """Derive the spec of a transformer from one call of its forward, which is made twice.

    Args:
        model: holds the blocks.
        forward: the forward with the arguments of the call; the first floating-point ones are the latents.
        add_up: adds up [K] float64 over the ranks that must derive the same.
    Raises:
        Unskippable: there are no blocks whose streams can be told.
    """
    calls, others = watched(model, forward), watched(model, with_other_latents(forward))
    anywhere = partial(_anywhere, add_up, _device(calls))
    moved = _moved(calls, others, anywhere)
    groups = {call.list_name: [each for each in calls if each.list_name == call.list_name] for call in calls}
    takes: dict[str, list[str | None]] = {}
    computed: dict[str, str] = {}
    for list_name, group in groups.items():
        try:
            takes[list_name] = stream_arguments(group, calls)
            _check_latents(moved[group[0].name], takes[list_name])
        except Unclear as reason:
            computed[list_name] = str(reason)
            takes.pop(list_name, None)
    if LEAST_SHARE * _size(model, computed) >= _size(model, takes):
        raise _refused(model, "; ".join(f"{name}: {reason}" for name, reason in computed.items()) or NONE)
    shown = [call for call in calls if call.list_name in takes]
    roles, changed = _roles(shown, takes, moved)
    joints = {name for name, flag in zip(changed, anywhere(list(changed.values())), strict=True) if flag}
    blocks = {name: _block(groups[name][0], takes[name], roles[name]) for name in takes}
    order = tuple(call.name for call in shown)
    return ModelSpec(type(model).__name__, blocks, order=order, joints=frozenset(joints), computed=computed)


def _size(model: nn.Module, names: Iterable[str]) -> int:
    return sum(parameter.numel() for name in names for parameter in model.get_submodule(name).parameters())


def refined(spec: ModelSpec) -> Iterator[ModelSpec]:
    """Yield the spec with its own joints, with more where another list begins, and with one before each block.

    Joints do no harm but for the memory: what is kept of each segment is as large as its streams. They are needed
    where something outside of the next block reads what a block returned, as a long skip does.
    """
    lists = [name.rpartition(".")[0] for name in spec.order]
    changes = {name for name, before, now in zip(spec.order[1:], lists, lists[1:], strict=False) if before != now}
    for joints in (spec.joints, spec.joints | changes, frozenset(spec.order)):
        yield replace(spec, joints=joints)


def with_other_latents(forward: partial[Any]) -> partial[Any]:
    """Return a call with other latents: its first argument of floating-point numbers."""
    call = inspect.signature(forward.func).bind(*forward.args, **forward.keywords)
    name = next((name for name, value in call.arguments.items() if _is_floating(value)), None)
    if name:
        call.arguments[name] = _changed(call.arguments[name])
    return partial(forward.func, *call.args, **call.kwargs)


def _is_floating(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(_is_floating(part) for part in value)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _changed(latents: Any) -> Any:
    if isinstance(latents, list | tuple):
        return type(latents)(_changed(part) for part in latents)
    return latents * 0.9 + 0.1


def _refused(model: nn.Module, why: str) -> Unskippable:
    return Unskippable(
        f"the blocks of {type(model).__name__} cannot be skipped one by one: {why}",
        "set granularity: output, or leave test and granularity out",
    )


def _check_latents(moved: set[str], takes: Sequence[str | None]) -> None:
    if not moved.intersection(takes):
        raise Unclear("its streams do not depend on the latents")


def _moved(calls: Sequence[BlockCall], others: Sequence[BlockCall], anywhere: Anywhere) -> dict[str, set[str]]:
    """Return, by block, the tensor arguments that are not the same in another forward, on any rank.

    A rank may hold tokens of the text alone, which the latents do not move before the first block mixes them.
    """
    compared = [
        (call.name, name, _differ(value, other.arguments.get(name)))
        for call, other in zip(calls, others, strict=True)
        for name, value in call.arguments.items()
    ]
    moved: dict[str, set[str]] = {call.name: set() for call in calls}
    flags = anywhere([differs for *_, differs in compared])
    for block, name in (each[:2] for each, flag in zip(compared, flags, strict=True) if flag):
        moved[block].add(name)
    return moved


def _anywhere(
    add_up: Callable[[torch.Tensor], torch.Tensor], device: torch.device | None, flags: list[bool]
) -> list[bool]:
    """Return which flags are set on any rank."""
    return [ranks > 0 for ranks in add_up(torch.tensor(flags, dtype=torch.float64, device=device)).tolist()]


def _device(calls: Sequence[BlockCall]) -> torch.device | None:
    """Return where the blocks compute, and so where messages are sent from."""
    outputs = (part for call in calls for part in outputs_of(call.output))
    return next((part.device for part in outputs if isinstance(part, torch.Tensor)), None)


def _differ(value: Any, other: Any) -> bool:
    return isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor) and not torch.equal(value, other)


def _roles(
    calls: Sequence[BlockCall], takes: dict[str, list[str | None]], moved: dict[str, set[str]]
) -> tuple[dict[str, dict[str, str]], dict[str, bool]]:
    """Return the role of each list's stream arguments, and which blocks take other streams than were returned."""
    roles: dict[str, dict[str, str]] = {}
    changed: dict[str, bool] = {}
    left: dict[str, Any] = {}  # what the block before returned, by role
    for call in calls:
        arguments = [name for name in takes[call.list_name] if name]
        mine = roles.setdefault(call.list_name, _first_roles(call, arguments, left, moved[call.name]))
        if left:
            changed[call.name] = any(not _same(call.arguments.get(name), left.get(role)) for name, role in mine.items())
        returned = zip(takes[call.list_name], outputs_of(call.output), strict=False)
        left = {mine[name]: value for name, value in returned if name and value is not None}
    return roles, changed


def _same(value: Any, other: Any) -> bool:
    """Return whether a block takes what was returned, or a copy of it."""
    return value is other or (fits(value, other) and value.dtype == other.dtype and torch.equal(value, other))


def _first_roles(call: BlockCall, arguments: Sequence[str], left: dict[str, Any], moved: set[str]) -> dict[str, str]:
    """Return the roles of a list's streams: those of the list before, else the image is what the latents move."""
    handed = {name: role for name in arguments for role, value in left.items() if call.arguments.get(name) is value}
    if set(handed) == set(arguments) and HIDDEN in handed.values():
        return handed
    image = next(name for name in sorted(arguments, key=lambda name: name != HIDDEN) if name in moved)
    return {name: HIDDEN if name == image else ENCODER for name in arguments}


def _block(call: BlockCall, takes: Sequence[str | None], roles: dict[str, str]) -> BlockSpec:
    returns = tuple(name and roles[name] for name in takes)
    arguments = {role: name for name, role in roles.items()}
    if isinstance(call.output, torch.Tensor):
        return BlockSpec(returns, arguments)
    return BlockSpec(returns, arguments, boxed=True, container=type(call.output))
