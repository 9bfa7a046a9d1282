"""What can go wrong, told apart: a user's mistake, ranks that diverged, and what is neither and hence a bug."""

from __future__ import annotations


class FastCacheError(Exception):
    """Base class of all errors that this package raises on purpose."""


class UsageError(FastCacheError, ValueError):
    """A mistake in what the user asked for; the command line prints it as one line.

    Attributes:
        problem: what was given, and what is wrong with it.
        advice: what is allowed, or what to do instead; empty where the problem says it all.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(problem, advice)
        self.problem = problem
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}" if self.advice else self.problem

    def of(self, source: object) -> UsageError:
        """Return the same mistake, said to be in `source`: a file or an option."""
        return UsageError(f"{source}: {self.problem}", self.advice)


class RestoreError(FastCacheError, RuntimeError):
    """A module cannot be put back, because something else replaced what FastCache had put there."""


class RankDivergenceError(FastCacheError, RuntimeError):
    """Ranks that must decide alike did not; raised on all of them instead of a hang."""


class ReplicaError(FastCacheError, RuntimeError):
    """The replicas of a batch job die, whatever they are given."""
