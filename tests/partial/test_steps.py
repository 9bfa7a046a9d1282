"""Partial steps on tiny models: the arithmetic by hand, the promises of the cache, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from fastcache_xdit import FastCacheConfig, enable, fastcache
from fastcache_xdit.decision import significance
from fastcache_xdit.models.catalogue import SPECS, spec_for
from fastcache_xdit.models.spec import BlockSpec, ModelSpec
from fastcache_xdit.options import TokensConfig
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.partial.allowed import check_tokens
from fastcache_xdit.segments.segment import blocks_of
from fastcache_xdit.tokens.merging import merging
from tests import tiny

STEPS = 8
MASK = {STEPS: "111pp10p"}
LONE = {"test": "none", "max_consecutive_skips": STEPS, "warmup_steps": 1, "cooldown_steps": 0, "schedule": MASK}
FAMILIES = ["pixart", "dit", "sd3", "flux"]
PART = {"keep_ratio": 0.25, "bucket": 4}


def generate(pipe, family, **changes):
    arguments = {**tiny.call_arguments(family, **changes), "num_inference_steps": STEPS}
    return torch.as_tensor(pipe(**arguments).images)


def traces(pipe):
    return {name: dict(vars(module)) for name, module in pipe.transformer.named_modules()}


@pytest.mark.parametrize(
    "tokens", [{"keep_ratio": 1.0}, {"threshold": 0.0}, {"merge_ratio": 1.0}, {**PART, "min_static_ratio": 0.8}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_is_bit_identical(family, tokens):
    pipe = tiny.pipeline(family)
    plain = generate(pipe, family)
    config = FastCacheConfig(**{**LONE, "schedule": {STEPS: "1" + "p" * (STEPS - 1)}}, tokens=tokens)
    with fastcache(pipe, config) as handle:
        assert torch.equal(generate(pipe, family), plain)
    assert str(handle.report()).startswith("nothing was skipped")
    assert [entry.reason for entry in handle.report().ledger[1:]] == ["most tokens move"] * (STEPS - 1)


@pytest.mark.parametrize("static_kv", ["reuse", "drop"])
@pytest.mark.parametrize("family", FAMILIES)
def test_partial_steps_are_counted_close_and_undone(family, static_kv):
    pipe = tiny.pipeline(family)
    plain, before = generate(pipe, family), traces(pipe)
    with fastcache(pipe, FastCacheConfig(**LONE, tokens={**PART, "static_kv": static_kv})) as handle:
        cached = generate(pipe, family)
        again = generate(pipe, family)
        held = handle.report().bytes_held
    report = handle.report()
    assert 0 < (cached - plain).norm() / plain.norm() < 0.01
    assert torch.equal(cached, again), "nothing of the first request is left"
    assert [entry.tokens for entry in report.ledger] == [None, None, None, 16, 16, None, None, 16]
    assert [entry.skip for entry in report.ledger] == [False] * 6 + [True, False]
    counters = report.counters
    assert (counters.partial.total(), counters.approximated.total()) == (2 * 3 * 7, 2 * 7)
    assert counters.compute_ratio() == pytest.approx((1 * 8 + 7 * (4 + 3 / 4)) / 64)
    assert "partial 42 of" in str(report)
    assert held > 0 and handle.report().bytes_held == 0
    assert traces(pipe) == before
    assert torch.equal(generate(pipe, family), plain)


MERGED = {"merge_ratio": 0.75, "merge_window": 16}


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_of_merging_and_blending_reach_the_model(family):
    """Two stages leave fewer tokens than one; blended static tokens differ from the stand-in's."""
    pipe = tiny.pipeline(family)

    def run(**tokens):
        with fastcache(pipe, FastCacheConfig(**LONE, tokens=tokens)) as handle:
            return generate(pipe, family), {entry.tokens for entry in handle.report().ledger} - {None}

    assert run(**MERGED)[1] == {48} and run(**{**MERGED, "merge_ratio": [0.75, 0.5]})[1] == {24}
    plain, blended = run(**PART), run(**PART, blend=0.5)
    assert plain[1] == blended[1] and not torch.equal(plain[0], blended[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_steps_are_counted_close_and_undone(family):
    pipe = tiny.pipeline(family)
    plain, before = generate(pipe, family), traces(pipe)
    with fastcache(pipe, FastCacheConfig(**LONE, tokens=MERGED)) as handle:
        cached = generate(pipe, family)
        assert torch.equal(cached, generate(pipe, family)), "nothing of the first request is left"
    assert 0 < (cached - plain).norm() / plain.norm() < 0.02
    assert [entry.tokens for entry in handle.report().ledger] == [None, None, None, 48, 48, None, None, 48]
    assert traces(pipe) == before


def test_a_merged_step_by_hand(objecting):
    """Blocks see each cluster once; each token gets what its cluster gained."""
    model, plain = tiny.transformer("dit"), tiny.transformer("dit")
    seen = []
    plain.transformer_blocks[1].register_forward_pre_hook(lambda _, args, kw: seen.append((args, kw)), with_kwargs=True)
    last = plain.transformer_blocks[-1]
    with fastcache(model, FastCacheConfig(**LOOP, tokens={**MERGED, "min_static_ratio": 0})) as handle:
        outputs = [step(model, "dit", timestep) for timestep in (600, 590)]
        merged, found = step(model, "dit", 580), handle.report().ledger[-1]
    assert torch.equal(outputs[1], step(plain, "dit", 590)) and found.tokens == 48
    step(plain, "dit", 580)
    (before, _), (args, kwargs) = seen
    x, rest = args[0], args[1:]
    clusters = merging(x, before[0], 0.75, 16, 5, 1.0)
    y = means = clusters.merge(x)
    for block in plain.transformer_blocks[1:]:
        y = type(block).forward(block, y, *rest, **kwargs)
    expected = clusters.unmerge(y, x, means)
    last.register_forward_hook(lambda *_: expected)
    torch.testing.assert_close(merged, step(plain, "dit", 580), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_static_tokens_that_stay_in_sight_help(family):
    pipe = tiny.pipeline(family)
    plain = generate(pipe, family)

    def error(**tokens):
        with fastcache(pipe, FastCacheConfig(**LONE, tokens={**PART, **tokens})):
            return (generate(pipe, family) - plain).norm()

    assert error() < error(static_kv="drop")


def test_a_region_is_computed_and_nothing_else():
    """The picture's left half: those tokens, at every partial step, and the same latents at a mask of another scale."""
    pipe, config = tiny.pipeline("pixart"), FastCacheConfig(**LONE, tokens={"score": "region", "bucket": 1})
    found, chosen = [], []
    for size in (8, 64):
        mask = torch.zeros(size, size)
        mask[:, : size // 2] = 1
        with fastcache(pipe, config) as handle:
            handle.focus(mask)
            handle._session.driver.partial.on_tokens = lambda tick, kept, scores: chosen.append(kept)
            found.append(generate(pipe, "pixart"))
        assert {entry.tokens for entry in handle.report().ledger} == {None, 32}
    assert torch.equal(*found)
    drawn = chosen[0].put(torch.ones(2, 32, 1), torch.zeros(2, 64, 1))[0].view(8, 8)
    assert torch.equal(drawn, torch.tensor([1.0] * 4 + [0.0] * 4).expand(8, 8))


def test_a_region_has_to_be_named_and_used():
    pipe = tiny.pipeline("pixart")
    with fastcache(pipe, FastCacheConfig(**LONE, tokens={"score": "region"})), pytest.raises(ValueError, match="focus"):
        generate(pipe, "pixart")
    with (
        fastcache(pipe, FastCacheConfig(**LONE, tokens=PART)) as handle,
        pytest.raises(ValueError, match="set tokens.score=region"),
    ):
        handle.focus(torch.ones(8, 8))


@pytest.mark.parametrize("mask", [torch.ones(1, 8, 8), torch.ones(8), torch.ones(0, 8), "left half"])
def test_a_mask_is_numbers_of_two_dimensions(mask):
    pipe = tiny.pipeline("pixart")
    with (
        fastcache(pipe, FastCacheConfig(**LONE, tokens={"score": "region"})) as handle,
        pytest.raises(ValueError, match=r"a mask is numbers of shape \[H, W\]"),
    ):
        handle.focus(mask)


def test_forecasts_need_a_calibration():
    with pytest.raises(ValueError, match="a calibration that has the keys and values of the model: there is none"):
        enable(tiny.pipeline("pixart"), FastCacheConfig(**LONE, tokens={**PART, "static_kv": "forecast"}))


def test_requests_do_not_touch_each_other():
    pipe = tiny.pipeline("pixart")
    config = FastCacheConfig(**LONE, tokens=PART)
    requests = [{"seed": 1}, {"seed": 2, "pixels": 192, "batch": 2}, {"seed": 3}]
    alone = []
    for request in requests:
        with fastcache(pipe, config):
            alone.append(generate(pipe, "pixart", **request))
    with fastcache(pipe, config):
        together = [generate(pipe, "pixart", **request) for request in requests]
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


def test_both_halves_of_guidance_keep_the_same_tokens():
    pipe = tiny.pipeline("pixart")
    with fastcache(pipe, FastCacheConfig(**LONE, tokens=PART)) as handle:
        kept = watched(handle)
        generate(pipe, "pixart", batch=2)
    assert all(torch.equal(*index.chunk(2)) for index in kept)
    assert not torch.equal(*kept[0].chunk(2)[0]), "samples differ"


def watched(handle):
    """Collect the indices of what partial steps keep."""
    found = []
    handle._session.driver.partial.on_tokens = lambda tick, kept, scores: found.append(kept.selection.index)
    return found


# In a user's own loop: two whole steps, then partial ones, since the test objects to every skip.
LOOP = {"test": "paper", "error_budget": 1e9, "warmup_steps": 2, "max_consecutive_skips": 2, "cooldown_steps": 0}


@pytest.fixture
def objecting(monkeypatch):
    """Let the paper's test find every change significant, which it does for none below 100 %."""
    monkeypatch.setattr(significance, "quantile", lambda alpha, dof: 0.0)


def step(model, family, timestep):
    with torch.no_grad():
        return model(**tiny.forward_arguments(family, seed=timestep, timestep=timestep), return_dict=False)[0]


@pytest.mark.parametrize("score", ["predicted_change", "input_change"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_partial_step_by_hand(objecting, family, score):
    """Whole-length blocks in which hooks put the old keys and values of static tokens back give the same rows."""
    model, times = tiny.transformer(family), (600, 590, 580, 570)
    hand = ByHand(tiny.transformer(family), family, score, keep=16)
    with fastcache(model, FastCacheConfig(**LOOP, tokens={**PART, "score": score})) as handle:
        for number, timestep in enumerate(times):
            ours, theirs = step(model, family, timestep), hand.step(timestep, partial=number > 1)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert [entry.tokens for entry in handle.report().ledger] == [None, None, 16, 16]
        for name, rows in hand.projected.items():
            torch.testing.assert_close(stored(handle, name), rows, rtol=1e-5, atol=1e-6)


def stored(handle, name):
    return handle._session.driver.partial.keys_values._stored["fused", None, name][0][1]


class ByHand:
    """The same rule, written from the outside: nothing is gathered, every block computes all rows."""

    def __init__(self, model, family, score, keep):
        self.model, self.family, self.score, self.keep = model, family, score, keep
        self.projected, self.whole, self.mask = {}, [], None
        blocks = blocks_of(model, spec_for(model), {})[1:]
        for block in blocks:
            attention = getattr(block.module, block.spec.attentions[0])
            for layer, kind in ((attention.to_k, "keys"), (attention.to_v, "values")):
                layer.register_forward_hook(self._projecting(f"{block.name}.{block.spec.attentions[0]} {kind}"))
        blocks[0].module.register_forward_pre_hook(self._entering, with_kwargs=True)
        blocks[-1].module.register_forward_hook(self._leaving)
        self.spec = blocks[-1].spec

    def step(self, timestep, partial):
        self.partial = partial
        return step(self.model, self.family, timestep)

    def _projecting(self, name):
        def hook(module, args, output):
            if self.partial:
                text = output.shape[1] - self.mask.shape[1]  # FLUX's single blocks see text rows first, all of them new
                output = torch.where(pad(self.mask, (0, 0, text, 0), value=True), output, self.projected[name])
            self.projected[name] = output
            return output

        return hook

    def _entering(self, module, args, kwargs):
        self.entered = args[0] if args else kwargs["hidden_states"]
        if not self.partial:
            return
        (before, first), (last, second) = self.whole[-2:]
        gap = (second - last) + self._steps_since() * ((second - last) - (first - before))
        self.estimate = self.entered + gap
        moved = self.estimate - second if self.score == "predicted_change" else self.entered - last
        ranked = moved.square().sum(dim=2).argsort(dim=1, descending=True)[:, : self.keep]
        self.mask = torch.zeros(self.entered.shape[:2], dtype=torch.bool).scatter(1, ranked, True)[..., None]

    def _steps_since(self):
        self.since = getattr(self, "since", 0) + 1
        return self.since

    def _leaving(self, module, args, output):
        streams = self.spec.unpack(output)
        if self.partial:
            rows = torch.where(self.mask, streams.hidden_states, self.estimate)
            return self.spec.pack(streams._replace(hidden_states=rows))
        self.whole.append((self.entered, streams.hidden_states))


def test_the_test_makes_a_significant_step_partial_and_hard_limits_make_it_whole(objecting):
    pipe = tiny.pipeline("pixart")
    config = FastCacheConfig(**{**LOOP, "cooldown_steps": 1}, tokens=PART)
    with fastcache(pipe, config) as handle:
        generate(pipe, "pixart")
    assert [entry.partial for entry in handle.report().ledger] == [False, False, True, True, False, True, True, False]
    assert [entry.reason for entry in handle.report().ledger][2:5] == ["significant", "significant", "longest run"]
    only = FastCacheConfig(**LOOP, schedule=MASK, tokens={**PART, "when": "scheduled"})
    with fastcache(pipe, only) as handle:
        generate(pipe, "pixart")
    assert not any(entry.partial for entry in handle.report().ledger), "the test wants them whole"


def test_a_threshold_keeps_what_moves():
    pipe = tiny.pipeline("pixart")

    def tokens(threshold):
        config = FastCacheConfig(**LONE, tokens={"threshold": threshold, "bucket": 4, "min_static_ratio": 0})
        with fastcache(pipe, config) as handle:
            generate(pipe, "pixart")
        return [
            64 if entry.tokens is None else entry.tokens for entry in handle.report().ledger if entry.step in (3, 4)
        ]

    found = [tokens(threshold) for threshold in (0.0, 3e-4, 1.0)]
    assert found[0] == [64, 64] and found[2] == [4, 4] and 4 < found[1][0] < 64
    assert all(count % 4 == 0 for counts in found for count in counts)


@pytest.mark.parametrize(
    "target, tokens, words",
    [
        (lambda: tiny.transformer("flux"), {**PART, "balance": "reshard"}, "balance=reshard is not supported for Flux"),
        (lambda: fused(tiny.transformer("pixart")), PART, "unfuse_qkv_projections"),
        (lambda: compiled(tiny.transformer("pixart")), PART, "compiled blocks"),
    ],
)
def test_what_cannot_work_is_refused_by_name(target, tokens, words):
    with pytest.raises(ValueError, match=words):
        enable(target(), FastCacheConfig(test="paper", tokens=tokens))


def test_a_model_whose_spec_does_not_say_how_is_refused_by_name():
    spec = ModelSpec("Strange", {"blocks": BlockSpec()})
    with pytest.raises(ValueError, match="tokens with Strange is not supported"):
        check_tokens(TokensConfig(keep_ratio=0.5), spec, [], Topology())


def test_what_the_host_cannot_do_with_a_part_is_refused_by_name():
    with pytest.raises(ValueError, match="tokens with FP8 is not supported; leave one of them out"):
        check_tokens(TokensConfig(keep_ratio=0.5), SPECS[0], [], Topology(), "FP8")


@pytest.mark.parametrize(
    "family, tokens, words",
    [
        ("PixArtTransformer2DModel", {**PART, "static_kv": "drop"}, "static_kv=drop is not supported under PipeFusion"),
        ("PixArtTransformer2DModel", {"merge_ratio": 0.5}, "merge_ratio is not supported under PipeFusion"),
        ("PixArtTransformer2DModel", {"score": "region"}, "score=region is not supported under PipeFusion"),
        ("FluxTransformer2DModel", PART, "FluxTransformer2DModel under PipeFusion is not supported"),
    ],
)
def test_what_cannot_work_under_pipefusion_is_refused_by_name(family, tokens, words):
    spec = next(spec for spec in SPECS if spec.name == family)
    with pytest.raises(ValueError, match=words):
        check_tokens(TokensConfig(**tokens), spec, [], Topology(pipefusion_parallel_degree=2))


def fused(model):
    model.transformer_blocks[1].attn1.fuse_projections()
    return model


def compiled(model):
    model.transformer_blocks[1] = torch.compile(model.transformer_blocks[1])
    return model
