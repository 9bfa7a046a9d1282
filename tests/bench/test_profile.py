"""`bench overhead --profile`: where the time of each kind of step goes."""

from fastcache_xdit.bench.profile import COLUMNS, EMPTY, UNCACHED, profile
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner
from tests import tiny


def test_each_kind_of_step_has_its_parts_beside_the_plain_model():
    pipe = tiny.pipeline("flux")
    rows = profile(Runner(pipe), PipelineCall({**tiny.call_arguments("flux"), "num_inference_steps": 4}, 0))
    assert list(rows) == [UNCACHED, EMPTY, "computed", "tested", "skipped"]
    for kind, row in rows.items():
        assert [column for column in COLUMNS if column in row] == list(row)
        assert ("own" in row) == (kind not in (UNCACHED, EMPTY))
        assert row["whole"] > 0 and row["kernels"] > 0 and row["host"] > 0 and row["messages"] == 0
    assert len(pipe.transformer.transformer_blocks) == 4, "its blocks are back"
