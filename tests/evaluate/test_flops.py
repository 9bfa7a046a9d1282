"""Block FLOPs against the arithmetic of the layers."""

import pytest
import torch

from fastcache_xdit.evaluate.flops import counted
from tests import tiny


def test_linear_layers_and_attention_of_a_dit_block():
    model = tiny.transformer("dit")
    with counted(model) as flops, torch.no_grad():
        model(**tiny.forward_arguments("dit", batch=1))
    tokens, width = 64, 64
    projections = 4 * 2 * tokens * width * width
    attention = 2 * 2 * tokens * tokens * width
    feed_forward = 2 * 2 * tokens * width * 4 * width
    assert set(flops) == {f"transformer_blocks.{i}" for i in range(8)}
    modulation = flops["transformer_blocks.0"] - projections - attention - feed_forward
    assert 0 <= modulation < 0.05 * flops["transformer_blocks.0"]
    assert len(set(flops.values())) == 1
    assert "forward" not in vars(model.transformer_blocks[0])
    assert flops["transformer_blocks.0"] == pytest.approx(projections + attention + feed_forward, rel=0.05)
