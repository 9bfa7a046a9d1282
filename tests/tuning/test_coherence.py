"""Which way to add up errors a calibration takes: the best one, where images leave little doubt that it is better."""

import numpy as np
import pytest

from fastcache_xdit.tuning.coherence import TRIED, best_candidate


def errors(gain, spread, images=16):
    """Logarithms of errors; the third way gains `gain` on average, the others lose."""
    generator = np.random.default_rng(0)
    found = np.full((images, len(TRIED)), 0.5)
    found[:, 0] = 0
    found[:, 2] = -(gain + spread * generator.standard_normal(images))
    return found + 3 * generator.standard_normal((images, 1))


@pytest.mark.parametrize("gain, spread, way", [(0.3, 0.1, 2), (0.3, 2.0, 0), (-0.1, 0.1, 0), (0.0, 0.0, 0)])
def test_a_gain_must_be_clear(gain, spread, way):
    assert best_candidate(errors(gain, spread)) == way


def test_one_image_that_tips_over_does_not_decide():
    found = errors(0.3, 0.05)
    found[4, 2] = 10
    assert best_candidate(found) == 2
