"""What a rank answers."""

from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """What one rank saw of one case.

    Attributes:
        problems: what does not hold.
        refused: the line by which the case was refused, empty where it ran.
        group: the ranks that must take the same decisions.
        choices: the decisions of this rank.
        share: approximated / all calls.
        memory: the process's largest resident set so far, in KiB.
    """

    problems: list[str]
    refused: str = ""
    group: tuple[int, ...] = ()
    choices: str = ""
    share: float = 0.0
    memory: int = 0
