"""The choice of how errors of a request add up, by the error of the final latents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastcache_xdit.approx.coherence import Coherence

# Candidates (length, floor), each tried under even masks with these gaps between computed steps. The on-policy rounds,
# which come before, use `GUESSED`.
TRIED_GAPS = (2, 3, 4, 6)
TRIED = ((0.0, 0.0), *((length, floor) for length in (0.15, 0.3, 1.0) for floor in (1e-3, 1e-2)))
GUESSED = Coherence(math.inf, 0.3, 1e-2)
TRIMMED = 0.125  # fraction of images left out at either end: a few turn into another picture
SURE = 0.05  # significance level at which a candidate must be better than none


def best_candidate(errors: np.ndarray) -> int:
    """Return the index in `TRIED` of the least error if it is significantly below that of the first, else 0.

    Args:
        errors: [images, candidates], logarithms; compared image by image.
    """
    from scipy.stats import trim_mean, wilcoxon

    gains = errors[:, :1] - errors
    best = int(trim_mean(gains, TRIMMED).argmax())
    return best if best and wilcoxon(gains[:, best], alternative="greater").pvalue < SURE else 0


def best_coherence(tried: Mapping[int, Sequence[Sequence[float]]]) -> tuple[Coherence, ...]:
    """Return the best candidate of each gap, by growing reach; a guess if none was tried.

    Args:
        tried: by gap, logarithms of errors, [images, candidates].
    """
    if not tried:
        return (GUESSED,)
    gaps = sorted(tried)
    reaches = [*(2.0 * gap - 1 for gap in gaps[:-1]), math.inf]
    best = [TRIED[best_candidate(np.array(tried[gap]))] for gap in gaps]
    return tuple(Coherence(reach, *candidate) for reach, candidate in zip(reaches, best, strict=True))
