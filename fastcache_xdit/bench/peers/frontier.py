"""Compare caches at the same compute, each by the best that its own sweep reaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastcache_xdit.bench.peers.study import ResultRow, Study

BUDGETS = {"1/1.5": 1 / 1.5, "1/2": 1 / 2, "1/3": 1 / 3, "1/4": 1 / 4, "1/5": 1 / 5}
ROUNDING = 1.01  # whole steps, and the FLOPs of stand-ins, meet a budget only so closely


def frontier(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Return the settings that no other one beats in both compute and PSNR, cheapest first."""
    best: list[ResultRow] = []
    for row in sorted(rows, key=lambda row: (row["compute"], -row["scores"]["psnr_db"])):
        if not best or row["scores"]["psnr_db"] > best[-1]["scores"]["psnr_db"]:
            best.append(row)
    return best


def within(rows: Sequence[ResultRow], budget: float) -> ResultRow | None:
    """Return the best setting that costs no more than a share of the block FLOPs; None where all cost more."""
    return max(
        (row for row in rows if row["compute"] <= budget * ROUNDING),
        key=lambda row: row["scores"]["psnr_db"],
        default=None,
    )


def at_budget(rows: Sequence[ResultRow], budget: float) -> float | None:
    """Return one cache's PSNR in dB at a share of the block FLOPs; None where even its cheapest setting costs more.

    For FastCache it is that of the best setting that costs no more. For the others it is interpolated between their two
    nearest settings, linearly over log compute, so that none is behind for the coarseness of its sweep.
    """
    below = within(rows, budget)
    if below is None:
        return None
    above = [row for row in frontier(rows) if row["compute"] > budget * ROUNDING]
    cost, psnr = below["compute"], below["scores"]["psnr_db"]
    if not above or cost >= budget or below.get("ours"):
        return psnr
    next_cost, next_psnr = above[0]["compute"], above[0]["scores"]["psnr_db"]
    return psnr + (next_psnr - psnr) * math.log(budget / cost) / math.log(next_cost / cost)


@dataclass(frozen=True)
class Margin:
    """FastCache beside the best other cache at one budget.

    Attributes:
        budget: its name.
        ours, best: PSNR in dB of FastCache's best setting and of the best other cache; None where nobody reaches it,
            and no cache is the best other one where some were not installed.
        accuracy: share of the prompts' attributes that ours shows; None also where the model has no checker.
        peer: the best other cache.
        best_as_cheap: PSNR in dB of the best other cache at the compute that FastCache's setting takes, which may be
            less than the budget.
    """

    budget: str
    ours: float | None
    accuracy: float | None
    best: float | None
    peer: str
    best_as_cheap: float | None

    @property
    def ahead(self) -> float | None:
        """Return by how many dB FastCache is ahead; negative where it is behind."""
        return _difference(self.ours, self.best)

    @property
    def ahead_as_cheap(self) -> float | None:
        """Return the same beside the best other cache at no more compute than FastCache takes."""
        return _difference(self.ours, self.best_as_cheap)


def by_peer(study: Study) -> dict[str, dict[str, float | None]]:
    """Return each cache's PSNR in dB at each budget."""
    return {
        peer: {name: at_budget(rows, budget) for name, budget in BUDGETS.items()}
        for peer, rows in rows_by_peer(study).items()
    }


def rows_by_peer(study: Study) -> dict[str, list[ResultRow]]:
    """Return the settings that ran of each cache, in the order of tables."""
    rows: dict[str, list[ResultRow]] = {}
    for row in study.ran():
        rows.setdefault(row["peer"], []).append(row)
    return rows


def margins(study: Study) -> list[Margin]:
    """Compare FastCache with the best of the others at every budget."""
    ours = [row for row in study.ran() if row.get("ours")]
    others = {} if study.missing() else _others(study)
    return [_margin(name, within(ours, budget), others) for name, budget in BUDGETS.items()]


def best_other(study: Study, compute: float) -> float | None:
    """Return the PSNR in dB of the best of the others at a share of the block FLOPs; None where none gets there."""
    return _best(_others(study), compute)[0]


def foremost(study: Study) -> set[str]:
    """Return who is worth a first look: FastCache, the best other cache at each budget, and plain fewer steps."""
    others = _others(study)
    best = {_margin(name, None, others).peer for name in BUDGETS}
    return (rows_by_peer(study).keys() - others.keys()) | (best - {""}) | ({"fewer steps"} & others.keys())


def _others(study: Study) -> dict[str, list[ResultRow]]:
    return {peer: rows for peer, rows in rows_by_peer(study).items() if not rows[0].get("ours")}


def _margin(budget: str, ours: ResultRow | None, others: Mapping[str, Sequence[ResultRow]]) -> Margin:
    scores = ours["scores"] if ours else {"psnr_db": None, "prompt_accuracy": None}
    best, peer = _best(others, BUDGETS[budget])
    as_cheap = _best(others, ours["compute"])[0] if ours else None
    return Margin(budget, scores["psnr_db"], scores["prompt_accuracy"], best, peer, as_cheap)


def _best(others: Mapping[str, Sequence[ResultRow]], compute: float) -> tuple[float | None, str]:
    reached = [(psnr, peer) for peer, rows in others.items() if (psnr := at_budget(rows, compute)) is not None]
    return max(reached, default=(None, ""))


def _difference(ours: float | None, best: float | None) -> float | None:
    return None if ours is None or best is None else ours - best
