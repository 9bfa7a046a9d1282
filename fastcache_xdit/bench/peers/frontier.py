"""Who is ahead at what compute: each cache by the best that its own sweep reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_hex

from fastcache_xdit.bench.peers.results import Row, Study

BUDGETS = {"1/1.5": 1 / 1.5, "1/2": 1 / 2, "1/3": 1 / 3, "1/4": 1 / 4, "1/5": 1 / 5}
PALETTE = [to_hex(plt.get_cmap("tab20")(number)) for number in range(20)]
OURS, THEIRS = PALETTE[6:8], PALETTE[:6] + PALETTE[8:]  # reds are ours alone
ROUNDING = 1.01  # whole steps and what stand-ins take beside them meet a budget only so closely


def frontier(rows: Sequence[Row]) -> list[Row]:
    """Settings that no other of these beats in both compute and PSNR, cheapest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["compute"], -row["scores"]["psnr_db"])):
        if not best or row["scores"]["psnr_db"] > best[-1]["scores"]["psnr_db"]:
            best.append(row)
    return best


def within(rows: Sequence[Row], budget: float) -> Row | None:
    """The best setting that costs no more than a share of the block FLOPs."""
    return max(
        (row for row in rows if row["compute"] <= budget * ROUNDING),
        key=lambda row: row["scores"]["psnr_db"],
        default=None,
    )


def at_budget(rows: Sequence[Row], budget: float) -> float | None:
    """PSNR in dB of one cache's settings at a share of the block FLOPs; None where even the cheapest costs more.

    Of FastCache the best setting that there is. Others are given what lies straight between two of their settings, over
    log compute, so that none is behind for the coarseness of its sweep.
    """
    known = within(rows, budget)
    if known is None:
        return None
    left, low = known["compute"], known["scores"]["psnr_db"]
    above = [row for row in frontier(rows) if row["compute"] > budget * ROUNDING]
    if not above or left >= budget or known.get("ours"):
        return low
    right, high = above[0]["compute"], above[0]["scores"]["psnr_db"]
    return low + (high - low) * math.log(budget / left) / math.log(right / left)


@dataclass(frozen=True)
class Margin:
    """At one budget: our best, the best of the others and who that is, in dB; None where nobody reaches it.

    `accuracy` is the share of the prompts' attributes that our best shows; None also where the model has no checker.
    """

    budget: str
    ours: float | None
    accuracy: float | None
    best: float | None
    peer: str

    @property
    def ahead(self) -> float | None:
        """By how much we are ahead; negative where we are behind."""
        return None if self.ours is None or self.best is None else self.ours - self.best


def by_peer(study: Study) -> dict[str, dict[str, float | None]]:
    """PSNR of each cache at each budget."""
    ran = study.ran()
    mine = {peer: [row for row in ran if row["peer"] == peer] for peer in study.peers()}
    return {
        peer: {name: at_budget(rows, budget) for name, budget in BUDGETS.items()} for peer, rows in mine.items() if rows
    }


def margins(study: Study) -> list[Margin]:
    """Ours against the best of the others at every budget."""
    ours = [row for row in study.ran() if row.get("ours")]
    others = {peer: values for peer, values in by_peer(study).items() if all(row["peer"] != peer for row in ours)}
    found = []
    for name, budget in BUDGETS.items():
        mine = within(ours, budget)
        psnr, accuracy = (mine["scores"]["psnr_db"], mine["scores"]["prompt_accuracy"]) if mine else (None, None)
        known = [(value, peer) for peer, values in others.items() if (value := values[name]) is not None]
        best, peer = max(known, default=(None, ""))
        found.append(Margin(name, psnr, accuracy, best, peer))
    return found


def draw(study: Study) -> Path:
    """The figure `frontier.png` beside the results."""
    figure, panel = plt.subplots(figsize=(9, 5.5))
    for number, peer in enumerate(by_peer(study)):
        rows = [row for row in study.ran() if row["peer"] == peer]
        _line(panel, peer, rows, number)
    panel.set_xlabel("block FLOPs saved, times")
    panel.set_ylabel("PSNR against uncached, dB")
    panel.set_xscale("log", base=2)
    ticks = [1, 1.5, 2, 3, 4, 5, 6]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.minorticks_off()
    panel.set_title(study.title)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    path = study.folder / "frontier.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _line(panel: Any, peer: str, rows: Sequence[Row], number: int) -> None:
    ours = rows[0].get("ours")
    best = frontier(rows)
    palette = OURS if ours else THEIRS
    colour = palette[number % len(palette)]
    x, y = [1 / row["compute"] for row in best], [row["scores"]["psnr_db"] for row in best]
    panel.plot(x, y, "o-", color=colour, linewidth=2.6 if ours else 1.1, markersize=5 if ours else 3, label=peer)
