"""The errors that FastCache raises on purpose; any other exception is a bug."""

from __future__ import annotations


class FastCacheError(Exception):
    """Base class of all errors that FastCache raises on purpose."""


class UsageError(FastCacheError, ValueError):
    """A mistake of the user; the command line prints it as one line.

    Attributes:
        problem: what was given, and what is wrong with it.
        advice: what is allowed, or what to do instead; empty if `problem` says it all.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}" if self.advice else self.problem

    def of(self, source: object) -> UsageError:
        """Return this error with `source`, a file or an option, named in front of the problem."""
        return UsageError(f"{source}: {self.problem}", self.advice)


class RestoreError(FastCacheError, RuntimeError):
    """An attribute cannot be restored, because something else replaced it while the cache was on."""


class RankDivergenceError(FastCacheError, RuntimeError):
    """Ranks that must take the same decision did not; raised on all of them, which would otherwise hang."""


class ReplicaError(FastCacheError, RuntimeError):
    """The replicas of a batch job fail again and again, whatever requests they are given."""
