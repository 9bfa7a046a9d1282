"""The errors that FastCache raises on purpose; any other exception is a bug."""

from __future__ import annotations

import reprlib

_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = _QUOTED.maxlong = 100
LONGEST = 1000  # characters of a problem, or of its advice


class FastCacheError(Exception):
    """Base class of all errors that FastCache raises on purpose."""


class UsageError(FastCacheError, ValueError):
    """A mistake of the user; the command line prints it as one line.

    Attributes:
        problem: what was given, and what is wrong with it.
        advice: what is allowed, or what to do instead; empty if `problem` says it all.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        self.problem = one_line(problem)
        self.advice = one_line(advice)
        super().__init__(self.problem, self.advice)

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}" if self.advice else self.problem

    def of(self, source: object) -> UsageError:
        """Return this error with `source`, a file or an option, named in front of the problem."""
        return UsageError(f"{source}: {self.problem}", self.advice)


def quoted(value: object) -> str:
    """Quote what was given in an error, shortened."""
    return _QUOTED.repr(value)


def one_line(text: str) -> str:
    """Shorten a text that may quote what was given, and show what a terminal would act on instead of sending it."""
    cut = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)


class RestoreError(FastCacheError, RuntimeError):
    """An attribute cannot be restored, because something else replaced it while the cache was on."""


class RankDivergenceError(FastCacheError, RuntimeError):
    """Ranks that must take the same decision did not; raised on all of them, which would otherwise hang."""


class ReplicaError(FastCacheError, RuntimeError):
    """The replicas of a batch job fail again and again, whatever requests they are given."""
