"""Each fix against the real thing: xDiT on four ranks goes wrong without it, and equals one process with it."""

from __future__ import annotations

import logging

import pytest
import torch

from fastcache_xdit.host.xdit import fixes
from fastcache_xdit.host.xdit.fixes.keys_values import patch_major
from fastcache_xdit.host.xdit.fixes.requests import rank_spans
from fastcache_xdit.undo import Undo
from tests.parallel.launch import only, run_ranks

CLOSE = 1e-6  # relative; other orders of summation in fp32 give about 1e-7
FAR = 1e-5  # a hundred times what rounding in fp32 gives

ULYSSES = {"ulysses_degree": 2}
STAGES = {"pipefusion_parallel_degree": 2}
TENSOR = {"tensor_parallel_degree": 2}
BOTH = {**ULYSSES, **STAGES}
ODD_TEXT = {"tokens": 15}
ODD_IMAGE = {"pixels": 112}  # 49 tokens
SHORT_PATCH = {"pixels": 160}  # 20 latent rows: patches of 12 and 8 under two sequence ranks
BIGGER = {"model": {"sample_size": 20}}


def case(family: str, layout: dict | None = None, fixes: bool = False, ask: str = "latents", **request) -> dict:
    return {"family": family, "layout": layout or {}, "fixes": fixes, "ask": ask, "request": request}


def broken_and_cured(name: str, family: str, layout: dict, **request) -> dict[str, dict]:
    return {
        f"{name} broken": case(family, layout, **request),
        f"{name} cured": case(family, layout, fixes=True, **request),
    }


CASES = {
    "one": case("flux"),
    "odd text": case("flux", **ODD_TEXT),
    "odd image": case("flux", **ODD_IMAGE),
    "odd both": case("flux", **ODD_IMAGE, **ODD_TEXT),
    "short patch": case("pixart", BIGGER, **SHORT_PATCH),
    "two stages": case("pixart", STAGES),
    "long warmup": case("pixart", {**STAGES, "warmup_steps": 3}),
    "sd3 one": case("sd3"),
    "flux2 one": case("flux2"),
    "flux2 cured": case("flux2", STAGES, True),
    **broken_and_cured("shared text", "flux2", {**BOTH, "warmup_steps": 6}),
    **broken_and_cured("patch order", "pixart", BOTH),
    **broken_and_cured("tensor", "flux", {**TENSOR, **ULYSSES}),
    **broken_and_cured("text", "flux", ULYSSES, **ODD_TEXT),
    **broken_and_cured("runner text", "flux", {**ULYSSES, "runner": True}, **ODD_TEXT),
    **broken_and_cured("image", "flux", {**ULYSSES, "runner": True}, **ODD_IMAGE),
    "image, text cured": case("flux", {"ulysses_degree": 4, "runner": True}, True, **ODD_IMAGE, **ODD_TEXT),
    "ring refused": case("flux", {**ULYSSES, "ring_degree": 2, "runner": True}, True, **ODD_IMAGE),
    **broken_and_cured("heights", "pixart", {**BOTH, **BIGGER}, ask="patches", **SHORT_PATCH),
    "short patch cured": case("pixart", {**BOTH, **BIGGER, "warmup_steps": 6}, True, **SHORT_PATCH),
    **broken_and_cured("warmup", "pixart", {**STAGES, "warmup_steps": 3}, ask="warmup", short=2, long=6),
    "sd3 cured": case("sd3", STAGES, True),
    "sd3 synchronous": case("sd3", {**STAGES, "warmup_steps": 6}, True),
    "leftovers": case("flux", {**TENSOR, **ULYSSES}, ask="leftovers"),
    "applied": case("flux", ULYSSES, True, ask="applied"),
    "applied with tensor": case("flux", {**TENSOR, **ULYSSES}, True, ask="applied"),
    "sd3 broken": case("sd3", STAGES),  # last, both: their ranks fail at different places
    "flux2 broken": case("flux2", STAGES),
}


@pytest.fixture(scope="module")
def results() -> list[dict]:
    return run_ranks("layouts_worker.py", 4, cases=CASES)


@pytest.fixture(scope="module")
def error(results):
    def relative(case: str, reference: str) -> float:
        truth = only(results, reference)
        return ((only(results, case) - truth).norm() / truth.norm()).item()

    return relative


def failures(results: list[dict], case: str) -> list[str]:
    return [result[f"{case}!"] for result in results if f"{case}!" in result]


@pytest.mark.parametrize(
    "name, reference",
    [("patch order", "two stages"), ("tensor", "one"), ("text", "odd text"), ("runner text", "odd text")]
    + [("shared text", "flux2 one")],
)
def test_wrong_results_become_those_of_the_reference(error, name, reference):
    assert error(f"{name} broken", reference) > FAR
    assert error(f"{name} cured", reference) < CLOSE


@pytest.mark.parametrize("family", ["sd3", "flux2"])
def test_joint_attention_with_pipeline_stages_runs(results, error, family):
    assert any("expanded size of the tensor" in text for text in failures(results, f"{family} broken"))
    assert 0 < error(f"{family} cured", f"{family} one") < 1e-3  # asynchronous stages use keys that are one step old


def test_joint_attention_with_synchronous_pipeline_stages_is_exact(error):
    assert error("sd3 synchronous", "sd3 one") < CLOSE


def test_an_image_that_does_not_divide_runs_without_its_padding(results, error):
    assert "_pad_to_sp_divisible" in failures(results, "image broken")[0]
    assert error("image cured", "odd image") < CLOSE
    assert error("image, text cured", "odd both") < CLOSE


def test_an_image_that_does_not_divide_is_refused_under_ring_attention(results):
    assert len(failures(results, "ring refused")) == 4
    assert "49 image tokens and ring_degree=2 is not supported" in failures(results, "ring refused")[0]


def test_sequence_ranks_share_a_short_patch_equally(results, error):
    broken = [result["heights broken"] for result in results]
    assert broken[0] != broken[1], "ranks 0 and 1 share the patches of one stage"
    assert [result["heights cured"] for result in results] == [[6, 4]] * 4
    assert error("short patch cured", "short patch") < CLOSE


def test_a_short_request_leaves_the_warmup_of_the_next_alone(results):
    fresh = only(results, "long warmup")
    broken, cured = ([result[f"warmup {kind}"] for result in results] for kind in ("broken", "cured"))
    assert {answer["warmup"] for answer in broken} == {2}
    assert {answer["warmup"] for answer in cured} == {3}
    assert not torch.equal(_latents(broken), fresh)
    assert torch.equal(_latents(cured), fresh)


def _latents(answers: list[dict]) -> torch.Tensor:
    return next(answer["latents"] for answer in answers if answer["latents"] is not None)


def test_leaving_the_undo_log_takes_every_fix_back(results):
    for result in results:
        assert {"usp._has_kv_cache", "flux.USP", "groups.ULYSSES_PG"} <= set(result["leftovers"]["changed"])
        assert result["leftovers"]["left"] == []


def test_fixes_are_named_and_those_that_a_layout_cannot_need_are_left_out(results):
    assert results[0]["applied with tensor"] == [fix.name for fix in fixes.FIXES]
    assert set(results[0]["applied with tensor"]) - set(results[0]["applied"]) == {"tensor-ulysses-groups"}


def test_other_releases_are_left_alone_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(fixes.importlib.metadata, "version", lambda name: "0.8.1")
    with caplog.at_level(logging.WARNING), Undo() as undo:
        assert fixes.apply_fixes(undo) == []
    assert "xfuser 0.8.1 is not 0.7.x" in caplog.text


@pytest.mark.parametrize("version, answer", [("0.7.0", True), ("0.7", True), ("0.70.1", False), ("0.6.9", False)])
def test_supported_releases(version, answer):
    assert fixes.supported(version) is answer


def test_rows_are_reordered_from_ranks_to_patches():
    rows = torch.tensor([[0, 1, 2, 10, 11, 12]])  # two ranks of three tokens, in patches of two and one
    assert patch_major(rows, 2, [2, 1], dim=1).tolist() == [[0, 1, 10, 11, 2, 12]]


def test_rank_spans_tile_each_patch():
    spans = [rank_spans([8, 8, 4], degree=2, rank=rank) for rank in range(2)]
    assert spans == [[[0, 4], [8, 12], [16, 18]], [[4, 8], [12, 16], [18, 20]]]


def test_a_layout_without_cure_is_refused_by_name():
    with pytest.raises(ValueError, match="50 image tokens and ring_degree=2"):
        fixes.refuse(ulysses=2, ring=2, flux_image_tokens=50)


@pytest.mark.parametrize("degrees", [{}, {"ulysses": 4, "flux_image_tokens": 49}])
def test_cured_layouts_are_not_refused(degrees):
    fixes.refuse(**degrees)
