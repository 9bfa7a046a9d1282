"""Learning while serving, on a tiny pipeline in one process."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit import fastcache
from fastcache_xdit.approx.output import SEGMENT, STREAM, WITH_LATENTS, form_for
from fastcache_xdit.errors import UsageError
from fastcache_xdit.home import Home
from fastcache_xdit.learning.lesson import ENOUGH_FOR_LATENTS
from tests.models.unknown import UNKNOWN

STEPS, LEARN = 8, 2


class Service:
    """A pipeline that serves requests, each of a seed of its own."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.pipe, self.call = UNKNOWN["AuraFlow"]()
        self.pipe.set_progress_bar_config(disable=True)

    def serve(self, seed: int, **changes) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        arguments = {"num_inference_steps": STEPS, "output_type": "pt", "generator": generator, **changes}
        return self.pipe(**self.call, **arguments)[0]


def in_8_bits(picture: torch.Tensor) -> torch.Tensor:
    return (picture * 255).round() / 255


@pytest.fixture(scope="module")
def service():
    return Service()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCACHE_HOME", str(tmp_path / "home"))
    return Home()


@pytest.fixture
def learnt(service):
    with fastcache(service.pipe, budget=0.5, learn=LEARN) as handle:
        for seed in range(LEARN):
            service.serve(seed)
        yield handle


def skipped(handle) -> int:
    return sum(entry.skip for entry in handle.report().ledger)


def test_the_first_requests_are_exact_and_the_next_ones_planned(service):
    whole = [service.serve(seed) for seed in range(LEARN)]
    with fastcache(service.pipe, budget=0.5, learn=LEARN) as handle:
        for seed in range(LEARN):
            assert handle.learnt is None
            assert torch.equal(service.serve(seed), whole[seed])
            assert skipped(handle) == 0
        assert handle.learnt is not None
        service.serve(9)
        assert skipped(handle) == STEPS // 2


def test_making_requests_again_is_not_counted(learnt):
    counters = learnt.report().counters
    assert (counters.requests, counters.transformer_calls) == (LEARN, LEARN * STEPS)


def test_what_is_promised_is_what_comes_out(service, learnt):
    seeds = range(20, 24)
    with learnt.paused():
        whole = [in_8_bits(service.serve(seed)) for seed in seeds]
    served = [in_8_bits(service.serve(seed)) for seed in seeds]
    errors = [(picture - other).square().mean() for picture, other in zip(served, whole, strict=True)]
    measured = float(torch.stack([-10 * error.log10() for error in errors]).mean())
    promised = learnt.learnt.facts["promises"][str(STEPS // 2)]
    assert measured == pytest.approx(promised, abs=3)


def test_the_next_process_starts_with_it(service, learnt, home):
    assert [kept.steps for kept in home.listed()] == [STEPS]
    mask = learnt.learnt.facts["masks"][str(STEPS // 2)]
    learnt.disable()
    with fastcache(service.pipe, budget=0.5, learn=LEARN) as handle:
        assert handle.learnt is not None
        service.serve(3)
        assert [entry.skip for entry in handle.report().ledger] == [mark == "0" for mark in mask]


def test_latents_are_weighed_once_enough_requests_were_learnt_from(service, home):
    with fastcache(service.pipe, budget=0.5, learn=ENOUGH_FOR_LATENTS) as handle:
        for seed in range(ENOUGH_FOR_LATENTS):
            service.serve(seed)
        picture = service.serve(9)
        learnt = handle.learnt
    assert form_for(learnt.moments[SEGMENT][STREAM]) == WITH_LATENTS
    assert all(weights.shape[1] == len(refitted.known) + 1 for refitted, weights in learnt.refits.items())
    with fastcache(service.pipe, budget=0.5, learn=ENOUGH_FOR_LATENTS):
        assert torch.equal(service.serve(9), picture), "the next process does the same"


def test_a_broken_file_is_not_used(service, learnt, home):
    (kept,) = home.listed()
    kept.path.write_bytes(kept.path.read_bytes()[:-100])
    learnt.disable()
    with fastcache(service.pipe, budget=0.5, learn=LEARN) as handle:
        assert handle.learnt is None


def test_an_interrupted_request_is_lost_alone(service):
    def stop(*_):
        raise KeyboardInterrupt

    with fastcache(service.pipe, budget=0.5, learn=LEARN) as handle:
        service.serve(0)
        with pytest.raises(KeyboardInterrupt):
            service.serve(1, callback_on_step_end=stop)
        assert handle.recorded == 1
        service.serve(1)
        assert handle.learnt is not None


def test_a_callback_sees_each_request_once(service):
    seen = []

    def note(pipe, step, timestep, values):
        seen.append(step)
        return {}

    with fastcache(service.pipe, budget=0.5, learn=LEARN):
        for seed in range(LEARN + 1):
            service.serve(seed, callback_on_step_end=note)
    assert seen == list(range(STEPS)) * (LEARN + 1)


def test_random_numbers_go_on_as_if_nothing_had_been_learnt(service):
    def drawn() -> torch.Tensor:
        torch.manual_seed(5)
        for _ in range(LEARN):
            service.serve(0, generator=None)
        return torch.rand(3)

    expected = drawn()
    with fastcache(service.pipe, budget=0.5, learn=LEARN):
        assert torch.equal(drawn(), expected)


def test_requests_switch_between_goals_without_a_call_of_the_model(service, learnt):
    for budget, computed in ((0.25, 2), (0.5, 4), (0.75, 6)):
        with learnt.at(budget=budget):
            service.serve(4)
        assert STEPS - skipped(learnt) == computed


@pytest.mark.parametrize("goal", [{}, {"budget": 0.5, "psnr": 30}, {"budget": 2}, {"threshold": 1}])
def test_what_is_no_goal_is_refused(learnt, goal):
    with pytest.raises(UsageError), learnt.at(**goal):
        pass


def test_a_quality_is_reached_with_as_few_steps_as_possible(service):
    with fastcache(service.pipe, psnr=55, learn=LEARN) as handle:
        for seed in range(LEARN + 1):
            service.serve(seed)
        promises = {int(computed): promise for computed, promise in handle.learnt.facts["promises"].items()}
        computed = STEPS - skipped(handle)
    assert promises[computed] >= 55
    assert all(promise < 55 for fewer, promise in promises.items() if fewer < computed)


@pytest.mark.parametrize("change", [{"num_inference_steps": 3 * STEPS}, {"guidance_scale": 12.0}])
def test_what_was_learnt_is_not_used_far_from_it(service, learnt, caplog, change):
    service.serve(5, **change)
    assert "is far from that" in caplog.text
    service.serve(5)
    assert skipped(learnt) == STEPS // 2


def test_a_guard_measures_and_learns_again_where_the_promise_is_not_kept(service, caplog):
    with fastcache(service.pipe, budget=0.5, learn=LEARN, guard_every=2) as handle:
        for seed in range(LEARN + 4):
            service.serve(seed)
        promised = handle.learnt.facts["promises"][str(STEPS // 2)]
        assert handle.report().guarded == pytest.approx([promised] * 2, abs=3)
        assert not handle.is_recording
        handle.learnt.facts["worst"][str(STEPS // 2)] = 200.0
        service.serve(7)
        service.serve(8)
        assert "learning again" in caplog.text
        for seed in range(LEARN):
            assert handle.is_recording
            service.serve(seed)
            assert skipped(handle) == 0
        assert handle.learnt.facts["promises"][str(STEPS // 2)] == pytest.approx(promised, abs=3)


def test_other_pipelines_of_the_class_are_left_alone(service):
    other = Service()
    with fastcache(service.pipe, budget=0.5, learn=1) as handle:
        other.serve(0)
        assert handle.learnt is None and handle.recorded == 0


def test_a_warm_up_with_other_steps_does_not_keep_it_from_learning(service):
    with fastcache(service.pipe, budget=0.5, learn=LEARN) as handle:
        service.serve(0, num_inference_steps=1)
        for seed in range(LEARN):
            assert handle.is_recording
            service.serve(seed)
        assert handle.learnt and len(handle.learnt.sigmas) == STEPS
        service.serve(5)
        assert skipped(handle) == STEPS // 2


def test_an_interrupted_request_is_not_learnt_from(service):
    def stop(pipe, step, timestep, values):
        raise KeyboardInterrupt

    with fastcache(service.pipe, budget=0.5, learn=LEARN) as handle:
        with pytest.raises(KeyboardInterrupt):
            service.serve(0, callback_on_step_end=stop)
        assert handle.recorded == 0
        for seed in range(LEARN):
            service.serve(seed)
        assert handle.learnt


def test_what_goes_wrong_while_learning_does_not_take_the_picture(service, caplog, monkeypatch):
    whole = service.serve(1)
    with fastcache(service.pipe, budget=0.5, learn=2) as handle:
        service.serve(0)
        monkeypatch.setattr(handle._learner.replays, "again", _out_of_memory)
        assert torch.equal(service.serve(1), whole)
        assert "nothing was learnt: OutOfMemoryError" in caplog.text
        service.serve(2)
        assert skipped(handle) == STEPS // 2


def _out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_another_pipeline_of_the_same_model_learns_for_itself(service, learnt, home):
    other = type("OtherPipeline", (type(service.pipe),), {})
    assert home.find(learnt.learnt.identity)
    assert home.find({**learnt.learnt.identity, "pipeline": other.__name__}) is None


def test_requests_that_are_all_unlike_are_not_recorded_for_ever(service, caplog):
    with fastcache(service.pipe, budget=0.5, learn=2) as handle:
        for steps in range(2, 12):
            assert handle.is_recording
            service.serve(0, num_inference_steps=steps)
        assert not handle.is_recording and "too unlike each other" in caplog.text
        service.serve(0)
        assert skipped(handle) == STEPS // 2
