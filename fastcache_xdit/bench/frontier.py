"""The picture by which a cache is chosen: quality against compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fastcache_xdit.bench.approximations import Row

STYLES = {
    "tuned": ("tuned mask, fitted delta+history", "#d62728", "o-", 2.4),
    "fitted delta+history": ("uniform mask, fitted delta+history", "#ff9896", "s-", 1.8),
    "fitted history": ("uniform mask, fitted history", "#ffbb78", "s--", 1.2),
    "taylor1": ("uniform mask, Taylor 1", "#1f77b4", "^-", 1.5),
    "taylor2": ("uniform mask, Taylor 2", "#aec7e8", "^--", 1.2),
    "reuse": ("uniform mask, reuse", "#7f7f7f", "x-", 1.5),
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel for each number of steps: mean PSNR against how many times less block compute is spent."""
    steps = sorted({row.steps for row in rows})
    figure, panels = plt.subplots(1, len(steps), figsize=(4.6 * len(steps), 4.2), sharey=True, squeeze=False)
    for panel, count in zip(panels[0], steps, strict=True):
        for name, (label, colour, style, width) in STYLES.items():
            mine = [row for row in rows if row.steps == count and row.stand_in == name]
            x, y = [1 / row.compute_ratio for row in mine], [row.psnr_mean for row in mine]
            panel.plot(x, y, style, color=colour, linewidth=width, markersize=5, label=label)
        panel.set_title(f"{count} steps")
        panel.set_xlabel("block FLOPs saved, times")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("PSNR against uncached, dB")
    panels[0][-1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
