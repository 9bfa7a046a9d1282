"""What desks say of what is learnt, and who learns it; no model is loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.output import SEGMENT
from fastcache_xdit.home import Home
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.item import ItemOutcome
from fastcache_xdit.jobs.learnt import NAME
from fastcache_xdit.jobs.store import Store
from tests.jobs.jobs import FIGURES, items, outcomes, recipe
from tests.jobs.jobs import store as job_of
from tests.learnt import learnt


@pytest.fixture
def store(tmp_path):
    return job_of(tmp_path / "job", 5, batch_size=2)


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


@pytest.fixture
def known():
    made = learnt(requests=4)
    return replace(made, moments={SEGMENT: next(iter(made.moments.values()))})


def record(desk, after=-1):
    """Deliver what the desk hands out to be recorded; returns the batch."""
    taken = desk.next_to_record(after).items
    desk.deliver(outcomes(taken), FIGURES)
    return taken[0].batch


def test_one_desk_learns_and_all_know(store, home, known):
    one, two = StoreDesk(store, home=home), StoreDesk(store, home=home)
    assert one.learnt(known.identity) == (None, True)
    assert two.learnt(known.identity) == (None, False), "it waits"
    assert record(one, record(one)) == 1
    one.keep(known)
    assert two.learnt(known.identity).calibration.stamp == known.stamp
    assert Calibration.load(store.folder / NAME).stamp == known.stamp
    assert home.find(known.identity), "for the user's other jobs"
    two.deliver(outcomes(two.next().items), FIGURES)
    assert [item.recorded for item in store.items()] == [True, True, True, True, False]


@pytest.mark.parametrize("leave", [StoreDesk.close, lambda desk: desk.abandon("killed")])
def test_who_leaves_while_learning_makes_room_for_another(store, home, known, leave):
    one, two = StoreDesk(store, home=home), StoreDesk(store, home=home)
    one.learnt(known.identity)
    record(one)
    before = store.items()[0]
    one.next_to_record(0)
    leave(one)
    assert two.learnt(known.identity) == (None, True)
    assert record(two) == 0, "from the beginning"
    assert store.items()[0] == before, "but nothing is delivered twice"
    assert record(two, 0) == 1 and store.items()[2].recorded


def test_what_the_user_has_is_copied_once_and_nothing_is_recorded(store, home, known):
    home.keep(known)
    desk = StoreDesk(store, home=home)
    assert desk.learnt(known.identity).calibration.stamp == known.stamp
    home.keep(replace(known, sigmas=tuple(sigma / 2 for sigma in known.sigmas)))
    assert StoreDesk(store, home=home).learnt(known.identity).calibration.stamp == known.stamp
    desk.deliver(outcomes(desk.next().items), FIGURES)
    assert not store.items("recorded")


def test_a_job_that_has_begun_to_learn_takes_no_notice_of_what_the_user_has_by_then(store, home, known):
    desk = StoreDesk(store, home=home)
    desk.learnt(known.identity)
    record(desk)
    desk.abandon("killed")
    home.keep(known)
    assert StoreDesk(store, home=home).learnt(known.identity) == (None, True)


def test_one_of_another_part_of_the_model_is_not_used(store, home):
    home.keep(learnt())
    assert StoreDesk(store, home=home).learnt(learnt().identity) == (None, True)


def test_batches_of_the_most_common_shape_are_learnt_from(tmp_path, home, known):
    lines = [{"prompt": "a", "width": width} for width in (128, 64, 64, 128, 64)]
    lines += [{"prompt": "b", "steps": 9}, {"prompt": "b", "guidance": 9.0}]
    store = Store.create(tmp_path / "job", recipe(), items(lines))
    desk = StoreDesk(store, home=home)
    desk.learnt(known.identity)
    first = desk.next_to_record(-1).items
    desk.deliver([ItemOutcome(first[0].id, error="NaN")], FIGURES)
    assert first[0].id == 1 and [record(desk, 1), record(desk, 2)] == [2, 4]
    assert desk.next_to_record(4).items == ()
    assert [item.id for item in store.items("recorded")] == [2, 4], "what failed is not recorded"
