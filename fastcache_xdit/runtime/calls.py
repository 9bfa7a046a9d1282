"""What tells the steps of a loop apart that gives no timestep by name: what its calls are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from fastcache_xdit.models.streams import tensors_in

LARGEST_NUMBER = 4096  # elements of a tensor that may be one number in another form, such as once for each token


class _Noted(NamedTuple):
    """A call's timestep, and by name its arguments of its output's shape and those that are a number."""

    timestep: Any
    latents: dict[str, torch.Tensor]
    numbers: dict[str, float]


class Calls:
    """Remembers the last call of each branch in a request.

    Latents are the arguments of the output's shape. A call with those of the last one is a further call of its step. An
    argument that is not named like a timestep is found by what it does: of all numbers it alone moves with the latents.

    Attributes:
        timestep_name: name of the argument for the timestep; empty while it is not known.
    """

    def __init__(self) -> None:
        self.timestep_name = ""
        self._noted: dict[str, _Noted] = {}
        self._others: set[str] = set()  # numbers that change within a step, such as the class in a branch of guidance

    def begin(self) -> None:
        """Begin a request."""
        self._noted.clear()

    def note(self, branch: str, arguments: Mapping[str, Any], output: Any) -> None:
        """Keep the timestep of a call; while its argument is not known, copies of the latents, and the numbers."""
        if self.timestep_name:
            self._noted[branch] = _Noted(arguments.get(self.timestep_name), {}, {})
            return
        shape = next((tensor.shape for tensor in tensors_in([output])), None)
        given = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        latents = {name: value.clone() for name, value in given.items() if value.shape == shape}
        self._noted[branch] = _Noted(None, latents, _numbers(arguments))

    def has_moved(self, branch: str, arguments: Mapping[str, Any]) -> bool:
        """Return whether this branch's last call had other latents; True where it had none, or they are not known."""
        latents = self._noted[branch].latents if branch in self._noted else {}
        return not latents or not all(_equal(kept, arguments.get(name)) for name, kept in latents.items())

    def is_further(self, branch: str, arguments: Mapping[str, Any]) -> bool:
        """Return whether a call has the timestep of this branch's last one, or its latents where none is given."""
        if branch not in self._noted:
            return False
        given, last = arguments.get(self.timestep_name), self._noted[branch].timestep
        if given is None or last is None:
            return not self.has_moved(branch, arguments)
        return bool((torch.as_tensor(given) == torch.as_tensor(last)).all())

    def timestep(self, branch: str, arguments: Mapping[str, Any]) -> float | None:
        """Return the timestep that a call gives; None where it has none, or its argument is not known yet."""
        if not self.timestep_name and branch in self._noted:
            self._look(branch, arguments)
        given = arguments.get(self.timestep_name)
        return None if given is None else float(torch.as_tensor(given).flatten()[0])

    def _look(self, branch: str, arguments: Mapping[str, Any]) -> None:
        """Look for the timestep among the numbers that differ from those of the last call."""
        last = self._noted[branch]
        changed = {name for name, number in _numbers(arguments).items() if last.numbers.get(name, number) != number}
        if not self.has_moved(branch, arguments):
            self._others |= changed
        elif last.latents and len(changed - self._others) == 1:
            self.timestep_name = (changed - self._others).pop()


def _equal(kept: torch.Tensor, given: Any) -> bool:
    return isinstance(given, torch.Tensor) and given.shape == kept.shape and bool((given == kept).all())


def _numbers(arguments: Mapping[str, Any]) -> dict[str, float]:
    return {name: number for name, value in arguments.items() if (number := _number(value)) is not None}


def _number(value: Any) -> float | None:
    """Return the number that an argument is, or that all elements of a tensor are; None for all others."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, torch.Tensor) or not 0 < value.numel() <= LARGEST_NUMBER or value.is_complex():
        return None
    first = value.flatten()[0]
    return float(first) if bool((value == first).all()) else None
