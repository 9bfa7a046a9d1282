"""How the errors of skipped steps add up over a request."""

from __future__ import annotations

import math
from typing import NamedTuple


class Coherence(NamedTuple):
    """How the errors of one request add up, as the calibration measured on final latents.

    Errors of neighbouring steps are similar, so that their sum matters more than each of them, and a stand-in should
    compensate the errors of the skipped steps before it. Far from the computed steps it has too little information to
    do so.

    Attributes:
        reach: largest distance, in calibrated steps, to the second newest computed step for which this holds.
        length: difference of noise levels over which an error fades to 1/e; 0 to compensate nothing.
        floor: least strength of the ridge; the moments alone choose too small a one if neighbouring steps are similar.
    """

    reach: float
    length: float
    floor: float


NO_COHERENCE = Coherence(reach=math.inf, length=0.0, floor=0.0)
