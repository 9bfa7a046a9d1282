"""Frechet distances on features of the shapes classifier."""

import random

import numpy as np
import pytest
import torch

from fastcache_xdit.bench.features import drawn_features, features, frechet, temporal_frechet
from shapes.classifier import FEATURES, labels, shipped_classifier
from shapes.sampling import prompts, sample_any_scene
from shapes.shapes import draw_batch


def test_moved_by_three_and_four_is_twenty_five():
    known = np.random.default_rng(0).normal(size=(500, 2))
    assert frechet(known, known) == pytest.approx(0, abs=1e-9)
    assert frechet(known, known + [3, 4]) == pytest.approx(25)


def test_twice_as_wide_is_the_difference_of_the_spreads():
    known = np.random.default_rng(0).normal(size=(500, 1))
    spread = known.std(ddof=1)
    pair = np.hstack([known, np.zeros_like(known)])
    assert frechet(pair, 2 * pair) == pytest.approx(spread**2 + known.mean() ** 2)


def test_the_classifier_knows_the_shapes():
    rng = random.Random(7)
    scenes = [sample_any_scene(rng) for _ in range(64)]
    with torch.no_grad():
        guess = shipped_classifier()((draw_batch(scenes) + 1) / 2) > 0
    truth = torch.tensor([labels(scene) for scene in scenes]) > 0.5
    assert (guess == truth).float().mean() > 0.95


def test_drawings_are_nearer_to_drawings_than_noise_is():
    texts = prompts(16, 3)
    drawn, noise = drawn_features(texts), features(torch.rand(32, 3, 128, 128))
    assert drawn.shape == (256, FEATURES)
    assert frechet(drawn[::2], drawn[1::2]) < 0.2 * frechet(drawn, noise)


def test_predictions_that_stay_have_no_distance():
    still = torch.rand(8, 3, 128, 128)
    assert temporal_frechet([still, still]) == pytest.approx(0, abs=1e-4)
