"""A user's mistake that a rank on a Ray cluster meets ends the run as the same mistake."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from fastcache_xdit.errors import UsageError
from fastcache_xdit.jobs import ray_run
from fastcache_xdit.jobs.stop import Stop

MISTAKE = UsageError("8 blocks are too few for 16 stages", "set fewer")


def test_it_is_raised_as_it_was_met(monkeypatch):
    ray = SimpleNamespace(get=lambda result: result, exceptions=SimpleNamespace(RayError=RuntimeError))
    monkeypatch.setattr(ray_run, "ray_module", lambda: ray)
    fleet = ray_run._Fleet(store=None, xdit=None, size=1, queue=None)
    fleet._replicas = {MISTAKE: SimpleNamespace(end=lambda: None)}
    with pytest.raises(UsageError) as raised:
        fleet._end_of(MISTAKE, Stop())
    assert raised.value is MISTAKE


def test_it_travels_between_processes():
    arrived = pickle.loads(pickle.dumps(MISTAKE))
    assert (arrived.problem, arrived.advice, str(arrived)) == (MISTAKE.problem, MISTAKE.advice, str(MISTAKE))
