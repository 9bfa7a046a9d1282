"""Fits recover what was planted, never lose to their prior on held-out data, and follow the noise level."""

import pytest
import torch

from fastcache_xdit.approx.coherence import Coherence
from fastcache_xdit.approx.fit import Places, directions, error_made, fit
from fastcache_xdit.approx.fitted import Fitted
from fastcache_xdit.approx.forms import FORMS
from fastcache_xdit.approx.linear import Past, Reference
from fastcache_xdit.approx.moments import Halves, Moments

SIGMAS = (0.9, 0.7, 0.5, 0.3, 0.1)
CHANNELS, ROWS = 3, 400
STREAM = "hidden_states"


def trajectory(seed, rows=ROWS):
    """Random residuals and entry states of five steps; step 4 is planted from steps 3, 1, 0 and the entry states."""
    generator = torch.Generator().manual_seed(seed)
    residuals = [torch.randn(rows, CHANNELS, generator=generator) for _ in SIGMAS]
    entered = [torch.randn(rows, CHANNELS, generator=generator) for _ in SIGMAS]
    return residuals, entered


def moments(residuals, entered):
    made = Moments.empty(SIGMAS, residuals[0].shape[1])
    made.add(residuals, entered)
    return made


def planted(form):
    """R[4] by a known combination that the form can express, and its coefficients [R3, R1, R0, H, H3, H1, H0, 1]."""
    weights = {
        "history": torch.tensor([1.5, -0.7, 0.2, 0, 0, 0, 0, 0]),
        "history+entry": torch.tensor([1.2, -0.7, 0.2, 0.4, 0, 0, 0, 0]),
        "delta": torch.tensor([1.0, 0, 0, 0.4, -0.4, 0, 0, 0]),
        "affine": torch.tensor([0, 0, 0, 0.3, 0, 0, 0, -2.0]),
        "delta+history": torch.tensor([1.2, -0.3, 0.1, 0.5, -0.75, 0.25, 0, 0.6]),
    }[form]
    scale = torch.tensor([1.0, 2.0, -1.0])  # another combination in every channel
    weights = weights[:, None] * scale if form != "delta" else weights[:, None].expand(-1, CHANNELS).clone()

    def halves():
        for seed in (0, 1):
            residuals, entered = trajectory(seed)
            states = [residuals[3], residuals[1], residuals[0], entered[4], entered[3], entered[1], entered[0]]
            states.append(torch.ones(ROWS, CHANNELS))
            residuals[4] = sum(w * state for w, state in zip(weights, states, strict=True))
            yield moments(residuals, entered)

    return weights.T, Halves(*halves())


PLACE = Places.one(4, (3, 1, 0))


@pytest.mark.parametrize("form", FORMS)
def test_planted_coefficients_are_recovered(form):
    weights, halves = planted(form)
    found = fit(FORMS[form], *halves, PLACE)
    torch.testing.assert_close(found.coefficients[0].float(), weights, atol=2e-4, rtol=2e-3)
    assert found.relative_error.item() < 1e-3


def test_moments_of_two_ranks_add_up_to_those_of_one():
    residuals, entered = trajectory(3)
    halves = [[state[part] for state in residuals] for part in (slice(0, 100), slice(100, None))]
    entries = [[state[part] for state in entered] for part in (slice(0, 100), slice(100, None))]
    together = moments(halves[0], entries[0]).plus(moments(halves[1], entries[1]))
    torch.testing.assert_close(together.gram, moments(residuals, entered).gram, rtol=1e-12, atol=1e-9)


def noise():
    """Nothing can be learned, and a handful of rows would mislead plain least squares."""
    return Halves(moments(*trajectory(4, rows=9)), moments(*trajectory(5, rows=9)))


def late_news():
    """What step 3 adds beyond step 2 is known from no state before step 4, whose entry state it changes."""

    def half(seed):
        residuals, entered = trajectory(seed)
        news = residuals[3]
        residuals[3], residuals[4] = residuals[2] + news, residuals[2] + 0.1 * residuals[4]
        entered[4] = entered[2] + news
        return moments(residuals, entered)

    return Halves(half(8), half(9))


@pytest.mark.parametrize("form", FORMS)
def test_a_fit_never_loses_to_its_prior_on_held_out_data(form):
    halves, place = noise(), Places.one(4, (3, 2, 1))
    found = fit(FORMS[form], *halves, place)
    prior = fit(FORMS[form], *halves, place, strengths=(float("inf"),))
    assert found.squared_error.item() <= prior.squared_error.item() * (1 + 1e-9)


def test_the_error_made_is_what_a_fit_misses():
    """A quadratic form in the same moments gives back the fit's own held-out error, from training data alone."""
    halves, strengths = noise(), (0.1,)
    found = fit(FORMS["delta+history"], *halves, PLACE, strengths)
    both = halves.training.plus(halves.held_out).gram
    error = error_made(found.coefficients[0], len(SIGMAS), PLACE)
    residuals, entered = trajectory(4, rows=9)
    others = trajectory(5, rows=9)
    rows = [torch.cat(pair) for pair in zip([*residuals, *entered], [*others[0], *others[1]], strict=True)]
    states = torch.stack([*rows, torch.ones_like(rows[0])]).double()
    missed = torch.einsum("dz,znd->nd", error, states)
    torch.testing.assert_close(
        torch.einsum("dz,dzy,dy->d", error, both, error), missed.square().sum(0), rtol=1e-4, atol=0
    )


def test_an_error_of_earlier_steps_is_made_good():
    """With a carried error of R[3], the best guess of a planted R[4] is what was planted, plus all of R[3]."""
    weights, halves = planted("history")
    carried = torch.zeros(1, CHANNELS, 2 * len(SIGMAS) + 1, dtype=torch.float64)
    carried[..., 3] = 1
    found = fit(FORMS["history"], *halves, PLACE, carried=carried)
    weights[:, 0] += 1
    torch.testing.assert_close(found.coefficients[0].float(), weights, atol=2e-4, rtol=2e-3)
    assert found.relative_error.item() < 1e-3


def test_a_planned_request_makes_good_what_it_missed():
    """Two skips in a row: fits that each look at their own step miss what the second one could still add."""
    halves = late_news()
    alone, together = (
        Fitted("delta+history", {STREAM: halves}, coherence=(Coherence(reach, 100.0, 0.0),)) for reach in (2, 3)
    )
    computed = (2, 1, 0)
    first = [each.coefficients(STREAM, 3, computed) for each in (alone, together)]
    torch.testing.assert_close(first[0], first[1], msg="nothing was missed before the first skip")
    second = [each.coefficients(STREAM, 4, computed) for each in (alone, together)]
    gram = halves.training.plus(halves.held_out).gram
    missed = [error_made(each, len(SIGMAS), Places.one(3, computed)) for each in first]
    sums = [a + error_made(b, len(SIGMAS), Places.one(4, computed)) for a, b in zip(missed, second, strict=True)]
    energy = [torch.einsum("dz,dzy,dy->", each, gram, each).item() for each in sums]
    assert energy[1] < 0.05 * energy[0]


def test_the_prior_needs_no_solution():
    """Interpolated moments may be singular to the last bit."""
    made = Moments.empty(SIGMAS, CHANNELS)
    made.gram[:] = torch.eye(2 * len(SIGMAS) + 1, dtype=torch.float64)
    made.gram[:, 3, 1] = made.gram[:, 1, 3] = 1 + 1e-12
    nothing = Moments.empty(SIGMAS, CHANNELS)
    found = fit(FORMS["history"], made, nothing, PLACE, strengths=(float("inf"),)).coefficients[0, :, :3]
    torch.testing.assert_close(found, torch.tensor([1.5, -0.5, 0], dtype=torch.float64).expand(CHANNELS, -1))


@pytest.mark.parametrize("form", ["history", "delta+history"])
def test_directions_change_a_stand_in_by_as_much_as_it_errs(form):
    """Rows of unit weight, each on its own, move R by its error; and no two of them move it alike."""
    both = moments(*trajectory(0)).plus(moments(*trajectory(1)))
    weights = torch.zeros(CHANNELS, 8, dtype=torch.float64)
    weights[:, 0] = 1
    index = torch.tensor([3, 1, 0, 5 + 4, 5 + 3, 5 + 1, 5 + 0, 10])
    local = both.gram[:, index[:, None], index]
    error = error_made(weights, len(SIGMAS), PLACE)
    missed = torch.einsum("dz,dzy,dy->d", error, both.gram, error)
    ways = directions(FORMS[form], both, PLACE, weights)
    moved = ways @ local @ ways.transpose(1, 2) / missed[:, None, None]
    torch.testing.assert_close(moved, torch.eye(ways.shape[1], dtype=torch.float64).expand_as(moved), atol=1e-6, rtol=0)


def test_the_float64_reference_agrees():
    """The closed form against plain least squares on the rows themselves, where the ridge is negligible."""
    weights, halves = planted("history")
    found = fit(FORMS["history"], *halves, PLACE, strengths=(0.0,)).coefficients[0, :, :3]
    for channel in range(CHANNELS):
        rows, target = [], []
        for seed in (0, 1):
            residuals, _ = trajectory(seed)
            columns = torch.stack([residuals[step][:, channel] for step in (3, 1, 0)], dim=1).double()
            rows.append(columns)
            target.append(columns @ weights[channel, :3].double())
        solved = torch.linalg.lstsq(torch.cat(rows), torch.cat(target)[:, None]).solution[:, 0]
        torch.testing.assert_close(found[channel], solved, atol=1e-6, rtol=1e-6)


def test_applying_equals_the_sum_by_hand():
    weights, halves = planted("delta+history")
    stand_in = Fitted("delta+history", {STREAM: halves})
    residuals, entered = trajectory(7, rows=6)
    kept = [Reference(step, entered[step][None], residuals[step][None]) for step in (3, 1, 0)]
    guess = stand_in.residual(STREAM, entered[4][None], Past(4, kept, (3, 1, 0)))
    states = [residuals[3], residuals[1], residuals[0], entered[4], entered[3], entered[1], entered[0]]
    by_hand = sum(w * state for w, state in zip(weights.T[:7], states, strict=True)) + weights.T[7]
    torch.testing.assert_close(guess[0], by_hand, atol=2e-3, rtol=2e-3)
    half = [each._replace(entered=each.entered.bfloat16(), residual=each.residual.bfloat16()) for each in kept]
    assert stand_in.residual(STREAM, entered[4][None].bfloat16(), Past(4, half, (3, 1, 0))).dtype == torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
def test_parts_of_a_segment_add_up_to_the_whole(form):
    """PipeFusion: the first stage counts what entered and the constant, each stage its own residuals."""
    _, halves = planted("delta+history")
    whole, later = (Fitted(form, {STREAM: halves}, follows=follows) for follows in (False, True))
    residuals, entered = trajectory(7, rows=6)
    kept = [Reference(step, entered[step][None], residuals[step][None]) for step in (3, 1, 0)]
    first = [each._replace(residual=each.residual / 3) for each in kept]
    rest = [each._replace(residual=each.residual - part.residual) for each, part in zip(kept, first, strict=True)]
    rest = [each._replace(entered=None) if later.entered_kept == 0 else each for each in rest]
    parts = [
        each.residual(STREAM, entered[4][None], Past(4, r, (3, 1, 0))) for each, r in ((whole, first), (later, rest))
    ]
    expected = whole.residual(STREAM, entered[4][None], Past(4, kept, (3, 1, 0)))
    torch.testing.assert_close(sum(parts), expected, atol=1e-5, rtol=1e-5)


def smooth(sigmas):
    """Residuals and entry states that are cubic in the noise level: a cubic spline follows them exactly."""
    generator = torch.Generator().manual_seed(0)
    powers = torch.randn(2, 4, 50, CHANNELS, generator=generator, dtype=torch.float64)
    at = [torch.tensor([1.0, x, x**2, x**3], dtype=torch.float64) for x in sigmas]
    return [[torch.einsum("p,pnd->nd", x, part) for x in at] for part in powers]


def test_other_schedules_are_interpolated_in_the_noise_level():
    sigmas = (0.9, 0.8, 0.55, 0.33, 0.2, 0.1)
    made = Moments.empty(sigmas, CHANNELS)
    made.add(*smooth(sigmas))
    torch.testing.assert_close(moments(*smooth(SIGMAS)).at(sigmas).gram, made.gram, rtol=1e-8, atol=1e-8)


def test_packing_keeps_the_matrix():
    made = moments(*trajectory(0))
    torch.testing.assert_close(Moments.unpacked(SIGMAS, made.packed()).gram, made.gram, rtol=1e-6, atol=1e-4)


def test_places_between_calibrated_steps_keep_their_prior():
    """A cubic says nothing of how states curve between the steps that it goes through."""
    halves = Halves(moments(*trajectory(0)), moments(*trajectory(1))).at((0.9, 0.8, 0.7, 0.6, 0.5))
    form, prior = FORMS["history"], torch.tensor([2.0, -1.0, 0, 0, 0, 0])
    near, far = (fit(form, *halves, Places.one(step, known)) for step, known in ((2, (1, 0)), (4, (2, 0))))
    torch.testing.assert_close(near.coefficients[0, 0], prior.double(), rtol=0, atol=1e-12)
    assert not torch.allclose(far.coefficients[0, 0], prior.double(), atol=1e-3)
