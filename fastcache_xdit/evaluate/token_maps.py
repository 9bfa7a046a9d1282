"""Draw what partial steps computed of a picture, and how far its tokens moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from fastcache_xdit.clock import Tick
from fastcache_xdit.partial.balance import KeptTokens
from fastcache_xdit.runtime.observer import Observer
from fastcache_xdit.tokens.region import tiling

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

SHOWN = 6  # steps of a sheet
STATIC = (140, 146, 158, 215)  # what covers tokens that were not computed: seen on dark pictures and on light ones


class Seen(NamedTuple):
    """Some tokens of one step: which were computed, and their scores."""

    kept: list[bool]
    scores: list[float]


@dataclass
class TokenMaps(Observer):
    """Sees partial steps: the first image of a request, on this rank.

    Attributes:
        steps: tokens by step, then by the first token of the rows that a PipeFusion patch has; 0 without patches.
        is_over: see no more.
    """

    steps: dict[int, dict[int, Seen]] = field(default_factory=dict)
    is_over: bool = False

    def on_tokens(self, tick: Tick, kept: KeptTokens, scores: torch.Tensor) -> None:
        """Keep which tokens of the first image were computed, and their scores [B, N]."""
        if self.is_over:
            return
        ones, zeros = scores.new_ones(len(scores), kept.count, 1), torch.zeros_like(scores)[..., None]
        drawn = kept.put(ones, zeros)[0, :, 0] > 0
        start = tick.rows[0] if tick.rows else 0
        self.steps.setdefault(tick.step, {})[start] = Seen(drawn.tolist(), scores[0].tolist())


class TokenMap(NamedTuple):
    """One step: which tokens were computed [h, w], and the logarithm of their scores over the largest of all steps."""

    step: int
    kept: np.ndarray
    scores: np.ndarray


def assembled(shards: Sequence[TokenMaps], height: int, width: int) -> list[TokenMap]:
    """Put together the maps of all shards of the sequence, given in order, for a picture of this shape in pixels.

    Returns one map for each step; none where patches and shards divide the sequence at once, in xDiT's own order.
    """
    if len(shards) > 1 and any(len(parts) > 1 for parts in shards[0].steps.values()):
        return []
    joined = {step: _joined([shard.steps[step] for shard in shards]) for step in sorted(shards[0].steps)}
    largest = max((max(seen.scores) for seen in joined.values()), default=0.0) or 1.0
    maps = []
    for step, seen in joined.items():
        shape = tiling(len(seen.kept), height, width)
        scores = np.log10(np.clip(np.array(seen.scores) / largest, 1e-4, 1)).reshape(shape)
        maps.append(TokenMap(step, np.array(seen.kept).reshape(shape), scores))
    return maps


def over(picture: Image.Image, kept: np.ndarray) -> Image.Image:
    """Darken all tokens of the picture that were not computed, given which were, [h, w]."""
    cover = np.zeros((*kept.shape, 4), dtype=np.uint8)
    cover[~kept] = STATIC
    layer = Image.fromarray(cover).resize(picture.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def heat(scores: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Draw scores [h, w], from -4 (dark) to 0 (bright), as a picture of `size` pixels, width and height."""
    colours = colormaps["inferno"](1 + scores / 4)[..., :3]
    return Image.fromarray((255 * colours).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)


def sheet(rows: dict[str, tuple[Image.Image, Sequence[TokenMap]]], path: Path) -> None:
    """Draw one row for each kind of request: its picture, and the heat maps of `SHOWN` of its steps."""
    figure, panels = plt.subplots(len(rows), SHOWN + 1, figsize=(1.6 * (SHOWN + 1), 1.9 * len(rows)), squeeze=False)
    for line, (name, (picture, maps)) in zip(panels, rows.items(), strict=True):
        chosen = [maps[index] for index in np.linspace(0, len(maps) - 1, SHOWN).round().astype(int)]
        pictures = [picture, *(heat(step_map.scores, picture.size) for step_map in chosen)]
        titles = [name, *(f"step {step_map.step + 1}" for step_map in chosen)]
        for panel, shown, title in zip(line, pictures, titles, strict=True):
            panel.imshow(shown)
            panel.set_title(title, fontsize=9)
            panel.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _joined(shards: Sequence[dict[int, Seen]]) -> Seen:
    parts = [parts[start] for parts in shards for start in sorted(parts)]
    return Seen([kept for part in parts for kept in part.kept], [score for part in parts for score in part.scores])
