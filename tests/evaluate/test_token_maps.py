"""Maps of partial steps: tokens of all shards and patches in their places, drawn over the picture."""

import numpy as np
import torch
from PIL import Image

from fastcache_xdit.clock import Tick
from fastcache_xdit.evaluate.token_maps import TokenMaps, assembled, heat, over
from fastcache_xdit.partial.balance import LocalTokens
from fastcache_xdit.tokens.selection import Selection


def seen(maps, step, index, scores, rows=None):
    """One call of the watch, with two samples of which the second one is not drawn."""
    kept = LocalTokens(Selection(torch.tensor([index, list(range(len(index)))])))
    patch = None if rows is None else rows[0]
    maps.on_tokens(Tick("fused", patch, step, 8, rows), kept, torch.tensor([scores, [9.0] * len(scores)]))


def test_shards_lie_side_by_side():
    shards = [TokenMaps(), TokenMaps()]
    seen(shards[0], 3, [1], [0.0, 100.0, 1.0, 0.1])
    seen(shards[1], 3, [2], [10.0, 1e-9, 100.0, 1.0])
    (found,) = assembled(shards, 64, 32)
    assert found.step == 3
    assert found.kept.tolist() == [[False, True], [False, False], [False, False], [True, False]]
    np.testing.assert_allclose(found.scores, [[-4, 0], [-2, -3], [-1, -4], [0, -2]], atol=1e-5)


def test_patches_lie_below_each_other_and_not_between_shards():
    maps = TokenMaps()
    for start in (2, 0):
        seen(maps, 5, [start // 2], [1.0, 1.0], rows=(start, start + 2))
    (found,) = assembled([maps], 8, 8)
    assert found.kept.tolist() == [[True, False], [False, True]]
    assert assembled([maps, maps], 8, 16) == []


def test_static_tokens_are_covered_and_scores_are_coloured():
    kept = np.array([[True, False]])
    picture = over(Image.new("RGB", (8, 4), (200, 0, 0)), kept)
    assert picture.getpixel((1, 1)) == (200, 0, 0) and picture.getpixel((6, 1)) != (200, 0, 0)
    colours = np.asarray(heat(np.array([[-4.0, 0.0]]), (8, 4))).sum(axis=-1)
    assert colours[0, 0] < 20 and colours[0, -1] > 500
