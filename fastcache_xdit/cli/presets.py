"""`presets`: the tuned cache configs of shipped models, by the names that `--cache_config` takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import own_options
from fastcache_xdit.cli.options.presets import PresetsOptions, add_arguments
from fastcache_xdit.host.xdit.world import is_first_rank
from fastcache_xdit.shipped import SHIPPED, presets

TUNED = re.compile(r"^# +(\d+) steps: ([\d.]+)% of block FLOPs, ([\d.]+) dB$", re.M)  # as `tune` writes it
ROW = "{:<14} {:<10} {:>5}  {:>11}  {:>7}"


def main(argv: list[str]) -> int:
    """Print a row for each preset and number of steps that it was tuned for. Raises UsageError as `presets`."""
    options = own_options(PresetsOptions, argv, add_arguments)
    rows = [row for model in ([options.model] if options.model else SHIPPED) for row in _rows(model)]
    if not is_first_rank():
        return 0
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(ROW.format("MODEL", "PRESET", "STEPS", "BLOCK FLOPS", "PSNR"))
    for row in rows:
        share, psnr = f"{row['compute_ratio']:.0%}", f"{row['psnr_db']:.1f} dB"
        print(ROW.format(row["model"], row["preset"], row["steps"], share, psnr))
    print("\nPSNR is of the prompts that they were tuned on. To take one: --cache fastcache --cache_config third")
    return 0


def _rows(model: str) -> Iterator[dict[str, Any]]:
    for name, path in presets(model).items():
        for steps, share, psnr in TUNED.findall(Path(path).read_text()):
            ratio = round(float(share) / 100, 4)
            yield {"model": model, "preset": name, "steps": int(steps), "compute_ratio": ratio, "psnr_db": float(psnr)}
