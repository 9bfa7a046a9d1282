"""Masks of computed steps: a decision rule that needs no communication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def marks_for(schedule: Mapping[int, str], num_steps: int) -> str:
    """The mark of each of `num_steps` steps: the mask of that length, or the nearest one stretched.

    1 is a computed step, p a partial one, 0 none. Stretching keeps each mark's place in the request, and the share of
    computed and partial steps as far as they stay apart; where they meet, the step is computed. The first step always
    is.
    """
    if num_steps in schedule:
        return schedule[num_steps]
    nearest = min(schedule, key=lambda steps: (abs(steps - num_steps), steps))
    places = [(mark, round(step * num_steps / nearest)) for step, mark in enumerate(schedule[nearest])]
    return "".join(next((mark for mark in "1p" if (mark, step) in places), "0") for step in range(num_steps))


def mask_for(schedule: Mapping[int, str], num_steps: int) -> list[bool]:
    """Which of `num_steps` steps are computed whole, and so are references of stand-ins; see `marks_for`."""
    return [mark == "1" for mark in marks_for(schedule, num_steps)]


def uniform_mask(num_steps: int, computed: int) -> str:
    """`computed` of `num_steps` steps as far apart as they can be, from the first one on."""
    chosen = {round(index * num_steps / computed) for index in range(computed)}
    return "".join("1" if step in chosen else "0" for step in range(num_steps))


def skips(mask: Sequence[bool]) -> list[tuple[int, tuple[int, ...]]]:
    """Each skipped step with all computed ones before it, newest first.

    >>> skips([True, False, True, False])
    [(1, (0,)), (3, (2, 0))]
    """
    computed: tuple[int, ...] = ()
    found = []
    for step, compute in enumerate(mask):
        if compute:
            computed = (step, *computed)
        else:
            found.append((step, computed))
    return found
