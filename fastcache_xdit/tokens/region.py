"""The tokens of a part of the picture, for edits that leave the rest as it is."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import adaptive_max_pool2d

from fastcache_xdit.errors import UsageError


def tokens_inside(mask: torch.Tensor, total: int) -> torch.Tensor:
    """Which of a picture's tokens, row by row, hold a part of the mask: [H, W], nonzero inside -> [total] bool.

    Raises:
        UsageError: the tokens do not tile a picture of the mask's shape.
    """
    shape = tiling(total, *mask.shape)
    return adaptive_max_pool2d((mask != 0).float()[None], shape).flatten() > 0


def tiling(total: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the square tokens of a picture of this shape, at any scale.

    Raises:
        UsageError: there are none.
    """
    rows = round(math.sqrt(total * height / width))
    if rows == 0 or total % rows or abs(total / rows / rows * height / width - 1) > 0.1:
        raise UsageError(f"{height} x {width} does not fit {total} tokens", "give the shape of the picture")
    return rows, total // rows
