"""The output of a whole transformer stood in for on tiny pipelines, and the check of each request's worst sample."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit.layout import Layout, check_cache
from fastcache_xdit.runtime.returned import tensor_of, with_tensor
from tests import tiny

STEPS = 12


def run(pipe, family, lively=1.0, batch=2, **options):
    """Latents, ledger and counts of a request, whose second sample starts from `lively` times the noise."""
    arguments = {**tiny.call_arguments(family, batch=batch), "num_inference_steps": STEPS}
    if lively != 1:
        arguments["latents"][1:] *= lively
    with fastcache(pipe, FastCacheConfig(learn=0, **options)) as handle:
        images = torch.as_tensor(pipe(**arguments)[0])
    return images, handle.report().ledger, handle.report().counters


def uncached(pipe, family):
    return torch.as_tensor(pipe(**{**tiny.call_arguments(family, batch=2), "num_inference_steps": STEPS})[0])


def skips(ledger):
    return [entry.step for entry in ledger if entry.skip]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_half_of_the_steps_are_skipped_and_all_are_counted(family):
    pipe = tiny.pipeline(family)
    plain = uncached(pipe, family)
    latents, ledger, counts = run(pipe, family)
    calls = 2 if family == "wan" else 1  # of a step, one for each branch of guidance
    assert (counts.computed["output"], counts.approximated["output"]) == (calls * STEPS // 2, calls * STEPS // 2)
    assert {entry.reason for entry in ledger} == {"plan"}
    assert 0 < (latents - plain).norm() / plain.norm() < 0.2
    assert torch.equal(uncached(pipe, family), plain)


def test_a_budget_of_one_is_bit_identical():
    pipe = tiny.pipeline("flux")
    assert torch.equal(run(pipe, "flux", budget=1)[0], uncached(pipe, "flux"))


def test_a_schedule_without_a_mask_for_so_many_steps_is_planned_with_as_large_a_share():
    pipe, limits = tiny.pipeline("flux"), {"warmup_steps": 1, "cooldown_steps": 0, "max_consecutive_skips": STEPS}
    known = {"schedule": {8: "11110000"}, "granularity": "output", "test": "none", **limits}
    latents, ledger, counts = run(pipe, "flux", **known)
    assert counts.computed["output"] == counts.approximated["output"] == STEPS // 2
    planned, default, _ = run(pipe, "flux", budget=0.5)
    assert skips(ledger) == skips(default) and torch.equal(latents, planned)
    asked = run(pipe, "flux", **known | {"schedule": {8: "11110000", STEPS: "110011001100"}})[1]
    assert skips(asked) == [2, 3, 6, 7, 10, 11], "a mask that is given is taken"


@pytest.mark.parametrize("family", ["pixart", "flux", "wan"])
def test_a_check_that_nothing_passes_computes_everything(family):
    pipe = tiny.pipeline(family)
    latents, ledger, counts = run(pipe, family, check=1e-9)
    assert torch.equal(latents, uncached(pipe, family))
    assert counts.approximated.total() == 0
    planned = set(skips(run(pipe, family)[1]))
    assert {entry.step for entry in ledger if entry.reason == "check"} == planned


def test_a_check_that_everything_passes_changes_nothing_but_what_is_written_down():
    pipe = tiny.pipeline("sd3")
    latents, ledger, _ = run(pipe, "sd3")
    checked, written, _ = run(pipe, "sd3", check=1e9)
    assert torch.equal(latents, checked)
    assert [entry.choice for entry in ledger] == [entry.choice for entry in written]
    assert {entry.predicted_error for entry in ledger} == {0.0}
    assert all(0 < entry.predicted_error < 1 for entry in written if entry.skip)


def test_the_measured_error_is_that_of_the_worst_sample():
    """By hand, from what the scheduler is given uncached: at step 1 the stand-in would have been that of step 0."""
    pipe, outputs = tiny.pipeline("sd3"), []
    with fastcache(pipe, budget=1, learn=0) as handle, handle.watched(lambda _, output, *__: outputs.append(output)):
        pipe(**{**tiny.call_arguments("sd3", batch=2), "num_inference_steps": STEPS})
    _, ledger, _ = run(pipe, "sd3", check=1e9)
    first = next(entry for entry in ledger if entry.skip)
    assert first.step == 2
    with fastcache(pipe, learn=0) as handle:
        run_once = {**tiny.call_arguments("sd3", batch=2), "num_inference_steps": STEPS}
        pipe(**run_once)
        weight = handle._session.driver.pilot.weights(1, (0,), sees_latents=True).outputs[0, 0]
    missed = (outputs[1] - weight * outputs[0]).flatten(1).norm(dim=1) / outputs[1].flatten(1).norm(dim=1)
    assert first.predicted_error == pytest.approx(missed.max().item(), rel=1e-5)
    assert missed.min() < missed.max()


def test_a_batch_with_a_sample_that_moves_more_computes_more():
    pipe = tiny.pipeline("pixart")
    calm, lively = (run(pipe, "pixart", moves, check=1e9)[1] for moves in (1.0, 3.0))
    errors = [
        next(entry.predicted_error for entry in ledger if math.isfinite(entry.predicted_error) and entry.skip)
        for ledger in (calm, lively)
    ]
    between = sum(errors) / 2
    assert errors[0] < between < errors[1]
    calm, lively = (run(pipe, "pixart", moves, check=between)[1] for moves in (1.0, 3.0))
    assert len(skips(lively)) < len(skips(calm))
    assert [entry.reason for entry in lively].count("check") > [entry.reason for entry in calm].count("check")


def test_before_anything_is_measured_a_planned_skip_is_computed():
    pipe = tiny.pipeline("pixart")
    schedule = {STEPS: "10" * (STEPS // 2)}
    _, ledger, _ = run(pipe, "pixart", check=1e9, test="plan", schedule=schedule, warmup_steps=1, cooldown_steps=0)
    assert [(entry.step, entry.reason) for entry in ledger][:2] == [(0, "plan"), (1, "check")]
    assert ledger[1].predicted_error == math.inf
    assert skips(ledger) == [3, 5, 7, 9, 11]


def test_requests_do_not_touch_each_other():
    pipe = tiny.pipeline("pixart")
    arguments = [{**tiny.call_arguments("pixart", seed=seed), "num_inference_steps": STEPS} for seed in (1, 2, 1)]
    with fastcache(pipe, check=0.08, learn=0):
        first, _, third = (pipe(**call)[0] for call in arguments)
    assert torch.equal(first, third)


def test_an_output_that_is_not_finite_passes_no_check():
    pipe, calls = tiny.pipeline("sd3"), []

    def spoil(_module, _args, output):
        calls.append(1)
        return (output[0] * math.nan,) if len(calls) == 2 else output

    hook = pipe.transformer.register_forward_hook(spoil)
    try:
        _, ledger, counts = run(pipe, "sd3", check=1e9)
    finally:
        hook.remove()
    assert {entry.reason for entry in ledger if math.isnan(entry.predicted_error)} == {"check"}
    assert counts.nonfinite > 0 and not skips(ledger)


@pytest.mark.parametrize(
    "refused, words",
    [
        (
            lambda: fastcache(tiny.transformer("flux"), check=0.1, sigmas=[1.0, 0.5]).__enter__(),
            "check needs a scheduler",
        ),
        (
            lambda: check_cache(Layout(pipefusion_parallel_degree=2), FastCacheConfig(check=0.1)),
            "check is not supported under PipeFusion",
        ),
    ],
)
def test_where_outputs_are_not_seen_a_check_is_refused(refused, words):
    with pytest.raises(UsageError, match=words):
        refused()


def test_stages_need_nothing_to_follow_a_plan():
    check_cache(Layout(pipefusion_parallel_degree=2), FastCacheConfig())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensor: tensor,
        lambda tensor: (tensor, "more"),
        lambda tensor: ((tensor, None),),
        lambda tensor: Transformer2DModelOutput(sample=tensor),
    ],
)
def test_the_tensor_of_every_form_of_output_is_found_and_replaced(wrap):
    old, new = torch.zeros(1), torch.ones(1)
    assert tensor_of(wrap(old)) is old
    changed = with_tensor(wrap(old), new)
    assert tensor_of(changed) is new and type(changed) is type(wrap(old)) and len(changed) == len(wrap(old))


@pytest.mark.parametrize("wrap", [lambda part: {"velocity": part, "scale": 2}, lambda part: SimpleNamespace(out=part)])
def test_the_only_tensor_of_a_dict_or_an_object_is_found_and_replaced(wrap):
    old, new = torch.zeros(2), torch.ones(2)
    output = wrap(old)
    changed = with_tensor(output, new)
    assert tensor_of(output) is old and tensor_of(changed) is new and type(changed) is type(output)


@pytest.mark.parametrize("output", [{"a": torch.zeros(2), "b": torch.zeros(2)}, SimpleNamespace(), None])
def test_an_output_without_one_tensor_is_refused_by_the_name_of_its_type(output):
    with pytest.raises(UsageError, match=f"the model returns {type(output).__name__} with"):
        tensor_of(output)
