"""Schedules: masks that say in advance which steps are computed, so that ranks need no communication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def marks_at(schedule: Mapping[int, str], num_steps: int) -> str:
    """Return the mark of each of `num_steps` steps: the mask of that length, or the nearest one stretched.

    1 marks a computed step, p a partial one, 0 one that may be skipped. A stretched mask keeps every 1 and p at its
    relative position: with more steps as many are computed as in the mask, not as large a fraction; with fewer steps
    several may fall on one, which is computed if a 1 is among them. The first step is always computed.
    """
    if num_steps in schedule:
        return schedule[num_steps]
    nearest = nearest_to(schedule, num_steps)
    places = [(mark, round(step * num_steps / nearest)) for step, mark in enumerate(schedule[nearest])]
    return "".join(next((mark for mark in "1p" if (mark, step) in places), "0") for step in range(num_steps))


def share_at(schedule: Mapping[int, str], num_steps: int) -> float:
    """Return the share of computed steps in the mask that is nearest to `num_steps` steps."""
    mask = schedule[nearest_to(schedule, num_steps)]
    return mask.count("1") / len(mask)


def nearest_to(schedule: Mapping[int, str], num_steps: int) -> int:
    """Return the number of steps of the mask that serves `num_steps` steps; of two that are as near, the smaller."""
    return min(schedule, key=lambda steps: (abs(steps - num_steps), steps))


def computed_steps(schedule: Mapping[int, str], num_steps: int) -> list[bool]:
    """Return which of `num_steps` steps are computed fully and so become references; as in `marks_at`."""
    return [mark == "1" for mark in marks_at(schedule, num_steps)]


def uniform_mask(num_steps: int, computed: int) -> str:
    """Return the mask of `computed` evenly spaced steps out of `num_steps`, beginning with the first."""
    chosen = {round(index * num_steps / computed) for index in range(computed)}
    return "".join("1" if step in chosen else "0" for step in range(num_steps))


def skipped_steps(mask: Sequence[bool]) -> list[tuple[int, tuple[int, ...]]]:
    """Return each skipped step of a mask with all computed steps before it, newest first.

    >>> skipped_steps([True, False, True, False])
    [(1, (0,)), (3, (2, 0))]
    """
    computed: tuple[int, ...] = ()
    skipped = []
    for step, compute in enumerate(mask):
        if compute:
            computed = (step, *computed)
        else:
            skipped.append((step, computed))
    return skipped
