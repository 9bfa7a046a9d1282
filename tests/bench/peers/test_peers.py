"""Every cache on the shipped model: it does something or says why not, and leaves nothing behind."""

import pytest

from fastcache_xdit.bench.peers.backends import PlainBackend
from fastcache_xdit.bench.peers.catalogue import catalogue
from fastcache_xdit.bench.peers.measure import BenchPlan, PeerBench
from fastcache_xdit.bench.peers.measurement import CRASHED, NOT_INSTALLED, NOTHING, RAN, REFUSED
from fastcache_xdit.bench.peers.peer import Peer
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit.engine import batches
from shapes.loading import generation_defaults, model_path, tuned_configs
from shapes.sampling import prompts

STEPS = 8
PEERS = catalogue({"half": tuned_configs("shapes-pixart")[1 / 2]})


@pytest.fixture(scope="module")
def bench():
    cpu.prepare()
    measured, rehearsal = batches(prompts(2, 0), 1, 0)
    call = {**generation_defaults("shapes-pixart"), "num_inference_steps": STEPS}
    plan = BenchPlan([measured], measured, [rehearsal], repetitions=1, call=call)
    return PeerBench(lambda: PlainBackend(str(model_path("shapes-pixart")), "float32"), plan)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_cache_does_something_or_says_why_not(bench, peer):
    outcome = bench.measure(peer, peer.settings[-1])
    assert outcome.status in (RAN, NOTHING, REFUSED, CRASHED, NOT_INSTALLED)
    assert outcome.status == RAN or peer.package != "fastcache_xdit", outcome.error
    if outcome.status == RAN:
        assert 0 < outcome.compute < 1
        assert len(outcome.steps) <= STEPS
        assert outcome.scores.psnr_db > 5
        assert outcome.restored, "uncached requests give the same bits after it"
    if outcome.status in (REFUSED, CRASHED):
        assert outcome.error


def test_a_package_that_is_not_there_is_no_refusal(bench):
    peer = Peer("other", "no-such-package", PEERS[-1].apply, PEERS[-1].settings)
    outcome = bench.measure(peer, peer.settings[-1])
    assert (outcome.status, outcome.error) == (NOT_INSTALLED, "pip install no-such-package")


def test_what_steps_cost_is_what_was_computed(bench):
    (fixed,) = [peer for peer in PEERS if peer.name.startswith("fixed interval")]
    (half,) = [setting for setting in fixed.settings if setting.label == "1/2"]
    outcome = bench.measure(fixed, half)
    assert outcome.compute == pytest.approx(0.5)
    assert [round(share) for share in outcome.steps] == [1, 0] * (STEPS // 2)


def test_xdit_refuses_what_its_caches_do_not_know(bench):
    (teacache,) = [peer for peer in PEERS if peer.name == "xDiT teacache"]
    outcome = bench.measure(teacache, teacache.settings[0])
    assert outcome.status == REFUSED
    assert "PixArt" in outcome.error


def test_a_crash_is_reported_and_the_model_loaded_anew(bench):
    (planned,) = [peer for peer in PEERS if peer.name == "FastCache, pooled"]
    before = bench.backend
    bench.backend.pipe.vae.decode = None
    outcome = bench.measure(planned, planned.settings[-1])
    assert outcome.status == CRASHED
    assert "NoneType" in outcome.error
    assert bench.backend is not before
    again = bench.measure(planned, planned.settings[-1])
    assert again.status == RAN, again.error


def test_names_and_labels_are_unique():
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert all(len({each.label for each in peer.settings}) == len(peer.settings) for peer in PEERS)
