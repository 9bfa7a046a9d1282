"""Counts of computed and skipped work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Counters:
    """Totals since the cache was enabled or reset.

    Attributes:
        computed: block calls on all tokens, by block name.
        approximated: block calls that a stand-in replaced, by block name.
        partial: block calls on some of the tokens, by block name.
        computed_tokens: tokens computed, by block name; a PipeFusion patch counts as its part of a full step.
        approximated_tokens: tokens not computed, by block name.
        transformer_calls: calls of the transformer that are steps.
        bypassed_calls: calls of the transformer outside the steps of a request, which are computed in full.
        collectives: collective operations for decisions and tokens.
        headers: messages between PipeFusion stages.
        nonfinite: decisions that saw NaN.
        requests: requests begun.
        recorded: requests computed in full, to learn from.
        seconds: wall time of the pipeline's calls; 0 where the cache is on a bare transformer.
    """

    computed: Counter[str] = field(default_factory=Counter)
    approximated: Counter[str] = field(default_factory=Counter)
    partial: Counter[str] = field(default_factory=Counter)
    computed_tokens: Counter[str] = field(default_factory=Counter)
    approximated_tokens: Counter[str] = field(default_factory=Counter)
    transformer_calls: int = 0
    bypassed_calls: int = 0
    collectives: int = 0
    headers: int = 0
    nonfinite: int = 0
    requests: int = 0
    recorded: int = 0
    seconds: float = 0.0

    def note(self, block: str, tokens: int, computed: bool) -> None:
        """Count one block call on `tokens` tokens (batch x local sequence)."""
        calls, weights = (
            (self.computed, self.computed_tokens) if computed else (self.approximated, self.approximated_tokens)
        )
        calls[block] += 1
        weights[block] += tokens

    def note_partial(self, block: str, kept: int, tokens: int) -> None:
        """Count one block call that computed only `kept` of `tokens` tokens."""
        self.partial[block] += 1
        self.computed_tokens[block] += kept
        self.approximated_tokens[block] += tokens - kept

    def add(self, other: Counters) -> None:
        """Add the counts of another run or rank to these."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def clear(self) -> None:
        """Set all counts to zero."""
        self.__init__()  # type: ignore[misc]

    def compute_ratio(self, flops_per_token: Mapping[str, float] | None = None) -> float:
        """Return the executed fraction of all block work; without FLOPs per token, all blocks cost the same.

        A bypassed call counts as much as a mean step does in full.
        """
        cost = flops_per_token or {}
        done = sum(tokens * cost.get(name, 1.0) for name, tokens in self.computed_tokens.items())
        spared = sum(tokens * cost.get(name, 1.0) for name, tokens in self.approximated_tokens.items())
        outside = (done + spared) * self.bypassed_calls / self.transformer_calls if self.transformer_calls else 0.0
        total = done + spared + outside
        return (done + outside) / total if total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return all counts and their totals as plain values."""
        return {
            **asdict(self),
            "computed_total": self.computed.total(),
            "approximated_total": self.approximated.total(),
            "partial_total": self.partial.total(),
            "collectives_per_step": self.collectives / max(self.transformer_calls, 1),
        }

    def __str__(self) -> str:
        done, spared, partial = self.computed.total(), self.approximated.total(), self.partial.total()
        parts = f", partial {partial}" if partial else ""
        line = f"computed {done}, approximated {spared}{parts} of {done + spared + partial} block calls"
        bypassed = f", and {self.bypassed_calls} computed in full outside its steps" if self.bypassed_calls else ""
        steps = f"{self.transformer_calls} transformer calls{bypassed}, {self.collectives} collectives"
        line = f"{line} ({steps}){self._requests()}"
        return line if spared or partial else f"nothing was skipped: {line}"

    def _requests(self) -> str:
        """Say how many requests these were, how long they took, and what share of them was computed."""
        if not self.requests:
            return ""
        skipping = max((self.approximated + self.partial).values(), default=0)
        seconds = f" in {self.seconds:.1f} s" if self.seconds else ""
        share = self.compute_ratio()
        faster = f", estimated {1 / share:.2f}x faster" if skipping else ""
        return (
            f"; {self.requests} request{'s' * (self.requests > 1)}{seconds}, {skipping} of {self.transformer_calls} "
            f"calls skipped, {share:.0%} of the compute{faster}{self._learning(skipping > 0)}"
        )

    def _learning(self, skips: bool) -> str:
        """Say which requests were computed in full on purpose, and where all were, how to skip steps of the first."""
        at_once = "" if skips else "; with the option learn: 0 steps are skipped from the first request on"
        return f"; {self.recorded} computed in full to learn from{at_once}" if self.recorded else ""
