"""Blocks are numbered over the whole model and cut into runs with one decision each."""

from types import SimpleNamespace

import pytest
from torch import nn

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.models.catalogue import spec_for
from fastcache_xdit.segments.segment import Span, blocks_of, partition
from tests import tiny

FLUX = spec_for(tiny.transformer("flux"))


def flux_blocks(double, single, spans=None):
    lists = {"transformer_blocks": double, "single_transformer_blocks": single}
    model = SimpleNamespace(**{name: nn.ModuleList([nn.Identity() for _ in range(n)]) for name, n in lists.items()})
    return blocks_of(model, FLUX, spans or {})


def names(segments):
    return [[block.name.replace("transformer_blocks.", "t") for block in segment.blocks] for segment in segments]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"granularity": "step"}, [["t1", "single_t0", "single_t1", "single_t2"]]),
        ({"granularity": "group", "groups": 2}, [["t1", "single_t0"], ["single_t1", "single_t2"]]),
        ({"granularity": "group", "groups": 9}, [["t1"], ["single_t0"], ["single_t1"], ["single_t2"]]),
        ({"granularity": "block"}, [["t1"], ["single_t0"], ["single_t1"], ["single_t2"]]),
        ({"granularity": "step", "lead_blocks": 3}, [["single_t1", "single_t2"]]),
    ],
)
def test_granularity(options, expected):
    config = FastCacheConfig(test="paper", **options)
    lead, segments = partition(flux_blocks(2, 3), config)
    assert len(lead) == config.lead_blocks
    assert names(segments) == expected


def test_a_later_pipeline_stage_has_no_lead_blocks_and_global_names():
    stage = flux_blocks(1, 3, {"transformer_blocks": Span(3, 4), "single_transformer_blocks": Span(0, 4)})
    lead, segments = partition(stage, FastCacheConfig(test="paper"))
    assert lead == []
    assert names(segments) == [["t3", "single_t0", "single_t1", "single_t2"]]
    assert [block.index for block in stage] == [3, 4, 5, 6]


def test_a_stage_without_blocks_has_no_segments():
    assert partition(flux_blocks(0, 0), FastCacheConfig(test="paper", lead_blocks=0)) == ([], [])
