"""What an examination finds on one topic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """What was found on one topic.

    Attributes:
        topic: what was examined, in one word.
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
        """Return `fine`, `hint` (works, could be better) or `problem`."""
        return "problem" if self.problem else "hint" if self.advice else "fine"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, the state included, as plain values."""
        return {**asdict(self), "state": self.state}


def problem(topic: str, found: str, advice: str) -> Finding:
    """Make a finding that must be acted on."""
    return Finding(topic, found, advice, problem=True)


def tried(topic: str, look: Callable[[], Finding], advice: str) -> Finding:
    """Return what `look` finds; where it raises, whatever it raises is the finding, with this advice."""
    try:
        return look()
    except Exception as error:
        sentence = " ".join(str(error).split()) or "no reason given"
        return problem(topic, f"{type(error).__name__}: {sentence}", advice)
