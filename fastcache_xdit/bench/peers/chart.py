"""The frontier as lines and points of an SVG, in its own coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastcache_xdit.bench.peers.frontier import by_peer, frontier
from fastcache_xdit.bench.peers.results import Row, Study

WIDTH, HEIGHT, MARGIN = 760, 430, 46
OURS = ("#c8102e", "#f08a5d")
OTHERS = (
    *("#1f6fb4", "#2a9d5c", "#8e5bb5", "#b8860b", "#1aa6b7", "#7a5c48", "#d05fa2", "#5d6878"),
    *("#9aab2f", "#4455aa", "#7fb8e6", "#83c99b", "#c3a5dc", "#e0bd62", "#a08b80", "#e8a9cd"),
)
SAVED = (1, 1.5, 2, 3, 4, 5, 6)  # ticks: block FLOPs saved, times


class Point(NamedTuple):
    """One setting's place, and what is said of it."""

    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Line:
    """One cache: all its settings as points, and its frontier as a line of "x,y x,y ..."."""

    peer: str
    colour: str
    ours: bool
    path: str
    points: Sequence[Point]


class Axes:
    """Log of the block FLOPs saved to the right, PSNR upwards."""

    def __init__(self, rows: Sequence[Row]) -> None:
        values = [row["scores"]["psnr_db"] for row in rows]
        self.low = 10 * math.floor(min(values, default=0.0) / 10)
        self.high = 10 * math.ceil(max(values, default=10.0) / 10)
        self.most = max([SAVED[-1], *(1 / row["compute"] for row in rows)])

    def x(self, saved: float) -> float:
        """Where so many times saved is."""
        return round(MARGIN + (WIDTH - 2 * MARGIN) * math.log(max(saved, 1)) / math.log(self.most), 1)

    def y(self, psnr: float) -> float:
        """Where so many dB are."""
        return round(HEIGHT - MARGIN - (HEIGHT - 1.5 * MARGIN) * (psnr - self.low) / (self.high - self.low), 1)

    def ticks(self) -> dict[str, list[tuple[float, str]]]:
        """Places and labels of the grid's lines."""
        across = [(self.x(saved), f"{saved:g}x") for saved in SAVED]
        return {"x": across, "y": [(self.y(value), str(value)) for value in range(self.low, self.high + 1, 10)]}


def lines(study: Study, axes: Axes) -> list[Line]:
    """Every cache that ran; ours last, so that they lie on top."""
    found: list[Line] = []
    others = iter(OTHERS * 3)
    for peer in by_peer(study):
        rows = [row for row in study.ran() if row["peer"] == peer]
        ours = bool(rows[0].get("ours"))
        colour = OURS[sum(line.ours for line in found) % 2] if ours else next(others)
        path = " ".join(f"{axes.x(1 / row['compute'])},{axes.y(row['scores']['psnr_db'])}" for row in frontier(rows))
        found.append(Line(peer, colour, ours, path, [_point(row, axes) for row in rows]))
    return sorted(found, key=lambda line: line.ours)


def _point(row: Row, axes: Axes) -> Point:
    psnr = row["scores"]["psnr_db"]
    tip = f"{row['peer']}: {row['setting']}\n{row['compute']:.1%} of block FLOPs, {psnr:.2f} dB\n{pace(row)}"
    return Point(axes.x(1 / row["compute"]), axes.y(psnr), tip)


def pace(row: Row) -> str:
    """A row's wall time over uncached in words, never without its spread and repetitions."""
    if not row["speedup"]:
        return ""
    return "{median:.2f}x ({least:.2f} to {most:.2f}, {repetitions} runs)".format(**row["speedup"])
