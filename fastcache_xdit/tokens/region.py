"""The tokens of a region of the image, for edits that leave the rest as it is."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import adaptive_max_pool2d

from fastcache_xdit.errors import UsageError


def tokens_inside(mask: torch.Tensor, total: int) -> torch.Tensor:
    """Return which of an image's tokens, row by row, the mask touches: [H, W], nonzero inside -> [total] bool.

    Raises:
        UsageError: square tokens cannot tile an image of the mask's aspect ratio.
    """
    shape = tiling(total, *mask.shape)
    return adaptive_max_pool2d((mask != 0).float()[None], shape).flatten() > 0


def tiling(total: int, height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of `total` square tokens that tile an image of this aspect ratio.

    Raises:
        UsageError: there is no such tiling.
    """
    rows = round(math.sqrt(total * height / width))
    if rows == 0 or total % rows or abs(total / rows / rows * height / width - 1) > 0.1:
        raise UsageError(f"{height} x {width} does not fit {total} tokens", "give the shape of the picture")
    return rows, total // rows
