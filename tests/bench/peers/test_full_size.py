"""Random weights in the shape of published models, here with a few layers: caches run, and nothing is scored."""

import pytest
import torch

from fastcache_xdit.bench.peers import own, solvers
from fastcache_xdit.bench.peers.catalogue import catalogue, unscored
from fastcache_xdit.bench.peers.full_size import FullSize
from fastcache_xdit.bench.peers.measure import BenchPlan, PeerBench
from fastcache_xdit.bench.peers.measurement import RAN, REFUSED
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit.engine import batches
from fastcache_xdit.models.architectures import ARCHITECTURES

SIZE = {"height": 64, "width": 64, "num_inference_steps": 8}


@pytest.fixture(scope="module", params=["flux.1-dev", "pixart-sigma", "wan2.1-1.3b"])
def bench(request):
    cpu.prepare()
    architecture = ARCHITECTURES[request.param]
    call = {**architecture.call, **SIZE} | ({"num_frames": 5} if "num_frames" in architecture.call else {})
    measured, rehearsal = batches(["", ""], 1, 0)
    plan = BenchPlan([measured], measured, [rehearsal], 1, call, scored=False)
    return PeerBench(lambda: FullSize(architecture, "float32", "cpu", **architecture.tiny), plan)


def test_a_mask_computes_what_it_says(bench):
    masks = own.even_masks()
    (half,) = [setting for setting in masks.settings if setting.label == "1/2"]
    outcome = bench.measure(masks, half)
    assert outcome.status == RAN and outcome.restored, outcome.error
    assert outcome.compute == pytest.approx(0.5)
    assert outcome.transformer > 0.5, "what lies outside the blocks is computed at every step"
    assert outcome.speedup["repetitions"] == 1 and outcome.scores is None


def test_another_cache_runs_as_well(bench):
    (lite,) = [peer for peer in unscored() if peer.name == "diffusers TaylorSeer lite"]
    outcome = bench.measure(lite, lite.settings[1])
    assert outcome.status == RAN and outcome.restored, outcome.error
    assert 0.3 < outcome.compute < 1


PAPERS = [peer for peer in catalogue({}) if "reimplemented" in peer.name]


@pytest.mark.parametrize("peer", PAPERS, ids=lambda peer: peer.name)
def test_caches_after_their_papers_run_on_each_kind_of_model(bench, peer):
    """Guidance in one batch, without branches, and in two calls of which each has its own history."""
    outcome = bench.measure(peer, peer.settings[-1])
    assert outcome.status == RAN and outcome.restored, outcome.error
    assert outcome.compute < 0.8


@pytest.mark.parametrize("peer", solvers.peers(), ids=lambda peer: peer.name)
def test_solvers_run_where_flows_are_predicted(bench, peer):
    outcome = bench.measure(peer, peer.settings[1])
    if bench.backend.pipe.scheduler.config.get("prediction_type") == "epsilon":
        assert outcome.status == REFUSED and "does not predict flows" in outcome.error
    else:
        assert outcome.status == RAN and outcome.restored, outcome.error
        assert outcome.compute == pytest.approx(0.5 if "Heun" not in peer.name else 3 / 8, abs=0.03)


def test_weights_are_the_same_in_every_run():
    first, second = (
        FullSize(ARCHITECTURES["pixart-sigma"], "bfloat16", "cpu", **ARCHITECTURES["pixart-sigma"].tiny) for _ in "ab"
    )
    pairs = zip(first.pipe.transformer.parameters(), second.pipe.transformer.parameters(), strict=True)
    assert all(mine.equal(theirs) and mine.dtype.is_floating_point for mine, theirs in pairs)


def test_a_compiled_transformer_is_timed_once_it_is_compiled(monkeypatch):
    """With the compiler's work left out: each setting's request before a timing one is there to compile."""
    cpu.prepare()
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    architecture, (measured, rehearsal) = ARCHITECTURES["flux.1-dev"], batches(["", ""], 1, 0)
    plan = BenchPlan([measured], measured, [rehearsal], 1, {**architecture.call, **SIZE}, scored=False, compiled=True)
    bench = PeerBench(lambda: FullSize(architecture, "float32", "cpu", compiled=True, **architecture.tiny), plan)
    assert bench.transformer._compiled_call_impl is not None
    made, generate = [], bench.backend.generate
    monkeypatch.setattr(bench.backend, "generate", lambda *given: made.append(1) or generate(*given))
    masks = own.even_masks()
    outcome = bench.measure(masks, masks.settings[0])
    assert outcome.status == RAN, outcome.error
    assert len(made) == 1 + 2 * 2, "one to count, and with the cache and without it one to compile, one to time"
