"""Tuning that skips whole calls of a model where that comes out better than skipping its blocks."""

from __future__ import annotations

import pytest

from fastcache_xdit import FastCacheConfig, calibrate, fastcache
from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.output import SEGMENT
from fastcache_xdit.tuning.calls import calls_of
from fastcache_xdit.tuning.outputs import better
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.search import Search
from fastcache_xdit.tuning.tuned import Tuned
from tests.tuning.test_api import own_loop, video

OTHER_STEPS = 12


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A pipeline, the file of its calibration, its calls, and searches for two numbers of steps with their trials."""
    pipe, calls, _ = video()
    path = tmp_path_factory.mktemp("tuned") / "cal.safetensors"
    calibration, runner = calibrate(pipe, calls, output=path, lead_blocks=[0]), Runner(pipe)
    found = []
    for changes in ({}, {"num_inference_steps": OTHER_STEPS}):
        prepared = [call.changed(**changes) for call in calls_of(pipe, calls)]
        search = Search(runner, prepared, calibration, str(path))
        found.append((search, prepared, search.best(0.5, 0, lambda line: None)))
    return pipe, path, calls, found


def with_psnr(found, psnr):
    return [(search, calls, trial._replace(psnr_db=psnr)) for search, calls, trial in found]


def test_whole_calls_are_skipped_where_that_is_better(clips):
    pipe, path, calls, found = clips
    told = []
    trials = better(with_psnr(found, 0.0), told.append)
    assert told[0].startswith("blocks skipped: 0.0 dB; whole calls, learnt from 3 others: ")
    assert [(len(trial.mask), trial.compute_ratio) for trial in trials] == [(8, 0.5), (OTHER_STEPS, 0.5)]
    assert min(trial.psnr_db for trial in trials) > 15
    tuned, config_file = Tuned.of(trials, Calibration.load(path), {}), path.parent / "half.yaml"
    tuned.save(config_file, path, "Half")
    config = FastCacheConfig.from_file(config_file)
    assert (config.granularity, sorted(config.schedule)) == ("output", [8, OTHER_STEPS])
    kept = Calibration.load(path.parent / config.calibration)
    assert kept.moments.keys() == {SEGMENT}
    assert {len(refitted.sigmas) for refitted in kept.refits} <= {8, OTHER_STEPS}
    for steps in (8, OTHER_STEPS):
        with fastcache(pipe, config) as handle:
            pipe(**{**calls[0], "num_inference_steps": steps})
            assert len({entry.step for entry in handle.report().ledger if entry.skip}) == steps // 2
            assert handle.plan == "", "a schedule says what is skipped, and not what is known of other models"


def test_blocks_are_skipped_where_that_is_better(clips):
    *_, found = clips
    blocks = with_psnr(found, 99.0)
    assert better(blocks, lambda line: None) == [trial for _, _, trial in blocks]


def test_nothing_is_learnt_from_loops():
    model, loops, _ = own_loop()
    told = []
    assert better([(None, calls_of(model, loops), "its trial")], told.append) == ["its trial"] and not told
