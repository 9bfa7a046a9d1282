"""Calibrations as serving learns them, for tests of the home."""

from __future__ import annotations

from dataclasses import replace

from tests.approx.test_calibration import made


def learnt(norm=10.0, adapters=(), **facts):
    """A calibration of a model whose first block's weights have this norm."""
    known = made().identity | {"weights": {"transformer_blocks.0": norm}, "adapters": list(adapters)}
    return replace(made(), identity=known, facts=facts)
