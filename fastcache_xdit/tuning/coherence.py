"""How errors of one request add up: ways to model it, and which of them final latents are best served by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastcache_xdit.approx.fitted import Coherence

# Ways (length, floor), each tried on final latents under even masks with these gaps between computed steps; on-policy
# rounds, which come before, guess.
TRIED_GAPS = (2, 3, 4, 6)
TRIED = ((0.0, 0.0), *((length, floor) for length in (0.15, 0.3, 1.0) for floor in (1e-3, 1e-2)))
GUESSED = Coherence(math.inf, 0.3, 1e-2)
TRIMMED = 0.125  # share of images left out at either end: a few tip over into another picture
SURE = 0.05  # chance that a way seems better than none and is not


def best_way(errors: np.ndarray) -> int:
    """Return the way of `TRIED` with the least error, where it is significantly less than that of the first: else 0.

    Args:
        errors: [images, ways], logarithms; each image is compared with itself.
    """
    from scipy.stats import trim_mean, wilcoxon

    gains = errors[:, :1] - errors
    best = int(trim_mean(gains, TRIMMED).argmax())
    return best if best and wilcoxon(gains[:, best], alternative="greater").pvalue < SURE else 0


def best_coherence(tried: Mapping[int, Sequence[Sequence[float]]]) -> tuple[Coherence, ...]:
    """Return what `best_way` says of each gap, by growing reach; a guess where nothing was tried.

    Args:
        tried: by gap, logarithms of errors, [images, ways].
    """
    if not tried:
        return (GUESSED,)
    gaps = sorted(tried)
    reaches = [*(2.0 * gap - 1 for gap in gaps[:-1]), math.inf]
    ways = [TRIED[best_way(np.array(tried[gap]))] for gap in gaps]
    return tuple(Coherence(reach, *way) for reach, way in zip(reaches, ways, strict=True))
