"""Counts say what was computed, and say so when nothing was skipped."""

import pytest

from fastcache_xdit.counters import Counters


def counted():
    counters = Counters(transformer_calls=4, collectives=4)
    counters.note("a.0", 8, computed=True)
    counters.note("a.0", 8, computed=True)
    counters.note("a.1", 8, computed=True)
    counters.note("a.1", 8, computed=False)
    return counters


def test_ratio_weighs_blocks_by_their_flops():
    assert counted().compute_ratio() == pytest.approx(3 / 4)
    assert counted().compute_ratio({"a.0": 1.0, "a.1": 3.0}) == pytest.approx((2 + 3) / (2 + 6))
    assert Counters().compute_ratio() == 1.0


def test_a_partial_call_counts_by_its_tokens():
    counters = counted()
    counters.note_partial("a.1", 2, 8)
    assert counters.compute_ratio() == pytest.approx((24 + 2) / 40)
    assert str(counters).startswith("computed 3, approximated 1, partial 1 of 5 block calls")
    assert counters.to_dict()["partial_total"] == 1


def test_report_line():
    assert str(counted()) == "computed 3, approximated 1 of 4 block calls (4 transformer calls, 4 collectives)"
    counters = counted()
    counters.requests, counters.seconds = 2, 3.21
    assert str(counters).endswith(
        "; 2 requests in 3.2 s, 1 of 4 calls skipped, 75% of the compute, estimated 1.33x faster"
    )
    idle = Counters(requests=1, recorded=1)
    idle.note("a.0", 8, computed=True)
    assert str(idle).startswith("nothing was skipped") and "faster" not in str(idle)
    assert "; 1 computed in full to learn from; with the option learn: 0 steps are skipped from the" in str(idle)


def test_adding_and_clearing():
    total = counted()
    total.add(counted())
    assert total.computed["a.0"] == 4 and total.collectives == 8 and total.to_dict()["approximated_total"] == 2
    total.clear()
    assert total == Counters()


def test_bypassed_calls_are_work_that_was_done():
    counters = Counters(transformer_calls=4, bypassed_calls=4)
    for step in range(4):
        counters.note("block", 10, computed=step % 2 == 0)
    assert counters.compute_ratio() == 0.75
    assert "4 transformer calls, and 4 computed in full outside its steps" in str(counters)
    assert Counters(bypassed_calls=12).compute_ratio() == 1
