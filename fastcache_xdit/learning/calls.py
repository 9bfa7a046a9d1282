"""Calls of a pipeline: what they are given, and making one again."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[..., Any]
CALLBACKS = ("callback", "callback_on_step_end")  # of the user's; they must not see a request twice


def arguments(call: Call, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, those included that are left to the pipeline's defaults."""
    parameters = inspect.signature(call).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters} | dict(kwargs)


@dataclass(frozen=True)
class RecordedCall:
    """The arguments of a call and the state of its random numbers, from before it was made."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    random: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RecordedCall:
        """Copy what the call will use up: its generators and the global random numbers."""
        return cls(args, {name: fresh(value) for name, value in kwargs.items()}, _random_state())

    def again(self, call: Call, **changes: Any) -> Any:
        """Make the call once more with the same random numbers, without the user's callbacks.

        Changes that the pipeline does not take are left out.
        """
        accepted = inspect.signature(call).parameters
        kwargs = {name: fresh(value) for name, value in self.kwargs.items() if name not in CALLBACKS}
        kwargs |= {name: value for name, value in changes.items() if name in accepted}
        with _with_random(self.random):
            return call(*self.args, **kwargs)


def fresh(value: Any) -> Any:
    """Return a generator, or a list of them, in its present state; other values as they are."""
    if isinstance(value, list) and value and isinstance(value[0], torch.Generator):
        return [fresh(generator) for generator in value]
    if not isinstance(value, torch.Generator):
        return value
    clone = torch.Generator(value.device)
    clone.set_state(value.get_state())
    return clone


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


@contextlib.contextmanager
def _with_random(state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    outer = _random_state()
    _set_random(state)
    try:
        yield
    finally:
        _set_random(outer)


def _set_random(state: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Show no progress bar inside the with block."""
    inner = getattr(pipe, "module", pipe)
    outer = copy.copy(getattr(inner, "_progress_bar_config", {}))
    inner._progress_bar_config = {**outer, "disable": True}
    try:
        yield
    finally:
        inner._progress_bar_config = outer
