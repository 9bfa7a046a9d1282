"""Steps, branches, patches and requests are told apart without guessing."""

import pytest

from fastcache_xdit.clock import FUSED, Clock, Patch


def step(clock, patch=None, **call):
    with clock.tick(patch if patch is None else Patch(patch, (0, 4), False), **call) as tick:
        return tick


def test_each_call_is_a_step():
    clock = Clock()
    clock.begin_request(3)
    ticks = [step(clock) for _ in range(3)]
    assert [(tick.branch, tick.step, tick.steps_left) for tick in ticks] == [
        (FUSED, 0, 2),
        (FUSED, 1, 1),
        (FUSED, 2, 0),
    ]
    assert clock.now is None


def test_a_call_can_be_of_a_named_step():
    """PipeFusion patches may be at different steps, and steps may be left out."""
    clock = Clock()
    clock.begin_request(6)
    with clock.at(4):
        assert [step(clock, patch=patch).step for patch in (0, 1)] == [4, 4]
        assert not clock.finished(None)
        with clock.at(2):
            assert step(clock, patch=1).step == 2
        assert step(clock, patch=0).step == 4
    assert step(clock).step == 5, "counting goes on from there"
    assert clock.finished(None)


def test_branches_count_apart():
    clock = Clock()
    clock.begin_request(2)
    for number in range(2):
        for name in ("cond", "uncond"):
            with clock.in_branch(name):
                assert step(clock)[:3] == (name, None, number)
    assert clock.branch == FUSED


def test_patches_share_the_step_of_the_first():
    clock = Clock()
    clock.begin_request(3)
    calls = [None, 0, 1, 0, 1]
    assert [step(clock, patch=patch).step for patch in calls] == [0, 1, 1, 2, 2]


def test_more_calls_than_steps_are_noticed():
    clock = Clock()
    clock.begin_request(2)
    step(clock)
    step(clock, patch=0)
    assert not clock.finished(Patch(1, (4, 8), True))
    step(clock, patch=1)
    assert clock.finished(None) and clock.finished(Patch(0, (0, 4), False))


def test_in_a_users_loop_a_larger_timestep_begins_a_request():
    clock = Clock()
    assert clock.starts_request(999)
    clock.begin_request(None)
    step(clock, timestep=999)
    assert clock.repeats(999) and not clock.starts_request(500)
    assert step(clock, timestep=500).step == 1
    assert clock.starts_request(999)


def test_an_exception_leaves_no_tick_behind():
    clock = Clock()
    with pytest.raises(KeyError), clock.tick():
        raise KeyError
    assert clock.now is None
    with pytest.raises(KeyError), clock.in_branch("cond"):
        raise KeyError
    assert clock.branch == FUSED
