"""One thing that was looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What was found on one topic.

    Attributes:
        topic: what was looked at, in one word.
        found: what is there.
        advice: one line on what to do; empty where all is fine.
        problem: whether the advice must be followed before FastCache works here.
    """

    topic: str
    found: str
    advice: str = ""
    problem: bool = False

    @property
    def state(self) -> str:
        """`fine`, `hint` (works, could be better) or `problem`."""
        return "problem" if self.problem else "hint" if self.advice else "fine"

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {**asdict(self), "state": self.state}


def problem(topic: str, found: str, advice: str) -> Finding:
    """A finding that must be acted on."""
    return Finding(topic, found, advice, problem=True)


def tried(topic: str, look: Callable[[], Finding], advice: str) -> Finding:
    """What `look` finds; whatever stops it is the finding: a doctor does not fall ill with the patient."""
    try:
        return look()
    except Exception as error:
        sentence = " ".join(str(error).split()) or "no reason given"
        return problem(topic, f"{type(error).__name__}: {sentence}", advice)
