"""Figures of a job from several ranks, on made-up runs whose figures are known."""

import json

import pytest
from PIL import Image

from fastcache_xdit.evaluate import closing, summary
from fastcache_xdit.evaluate.compare import Comparison, RankResult, Served
from fastcache_xdit.evaluate.decisions import MOST_REQUESTS
from fastcache_xdit.evaluate.learning import learning_figures
from fastcache_xdit.evaluate.output import OutputFolder
from fastcache_xdit.evaluate.report import write_report
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.parallel.topology import Topology

STEPS = 2


def page(*skips, segment="a.1"):
    return tuple(Entry(i, "fused", None, segment, skip, "because", 0.1, 0.01) for i, skip in enumerate(skips))


def served(seconds, images=(), computed=0, approximated=0, ledger=(), is_recorded=False):
    pictures = {index: Image.new("RGB", (16, 16), value) for index, value in images}
    made = Served(seconds, pictures, ledger=ledger, is_recorded=is_recorded)
    for name, count, is_computed in (("a.0", computed, True), ("a.1", approximated, False)):
        for _ in range(count):
            made.counters.note(name, 4, is_computed)
    made.counters.requests, made.counters.collectives = 1, 3
    return made


def run(*args):
    return RankResult([served(*args)])


def views(second=None):
    """Two Ulysses ranks: both compute and decide, the last one holds the images."""
    first = Comparison(run(2.0, (), 3, 1, page(False, True)), run(4.0))
    last = Comparison(
        run(2.5, [(1, (0, 0, 0)), (0, (9, 9, 9))], 3, 1, second or page(False, True)),
        run(4.5, [(0, (9, 9, 9)), (1, (10, 10, 10))]),
    )
    parts = enumerate((first, last))
    return [summary.view(part, Topology(rank=rank, sequence_parallel_degree=2), True) for rank, part in parts]


def test_one_of_the_agreeing_ranks_speaks_for_all():
    figures = summary.cache_figures(views(), STEPS)
    assert (figures["computed"], figures["approximated"], figures["partial"]) == (3, 1, 0)
    assert figures["compute_ratio"] == pytest.approx(3 / 4)
    assert figures["collectives_per_step"] == pytest.approx(3 / STEPS)
    assert figures["ledgers_agree"] is True


def test_ledgers_that_differ_are_seen():
    assert summary.cache_figures(views(second=page(True, True)), STEPS)["ledgers_agree"] is False


def test_images_are_paired_by_prompt_and_time_is_the_slowest_ranks():
    figures = summary.quality_figures(views(), ["x", "y"], lambda images, prompts: 0.5)
    assert (figures["baseline_seconds"], figures["cached_seconds"], figures["speedup"]) == (4.5, 2.5, 1.8)
    assert figures["psnr_db"] == {
        "mean": pytest.approx((100 + 28.13) / 2, abs=0.01),
        "min": pytest.approx(28.13, abs=0.01),
    }
    assert figures["prompt_accuracy"] == {"cached": 0.5, "uncached": 0.5}


def figures_of(parts):
    settings = {
        "model": "shapes <b>",
        "world_size": 2,
        "parallel": {"ulysses_degree": 2, "ring_degree": 1},
        "num_inference_steps": STEPS,
        "num_images": len(summary.images_of(parts, "cached")),
        "cache_config": {"budget": 0.5},
        "seconds": 2.5,
    }
    prompts = ["a <script>", "y"]
    quality = summary.quality_figures(parts, prompts, None)
    figures = {**settings, **summary.cache_figures(parts, STEPS), **quality}
    return {**figures, **learning_figures(parts, figures)}, prompts


def test_the_report_needs_nothing_else_and_escapes_what_users_wrote(tmp_path):
    parts = views()
    figures, prompts = figures_of(parts)
    write_report(tmp_path / "report.html", figures, prompts, parts)
    html = (tmp_path / "report.html").read_text()
    assert "a <script>" not in html and "a &lt;script&gt;" in html
    assert html.count("data:image/png;base64,") == 4
    assert not [word for word in ("http://", "https://", 'src="images') if word in html]
    assert "cell skipped" in html and "cell computed" in html and "1.80x" in html


def test_the_last_line_has_the_figures():
    figures, _ = figures_of(views())
    line = closing.line(figures, "report.html")
    assert line.startswith("fastcache: 2 images, 1.80x faster (4.5 s -> 2.5 s), PSNR 64.1 dB, worst 28.1")
    assert "75% of block FLOPs, ranks agree" in line and "\n" not in line
    assert "RANKS DISAGREE" in closing.line({**figures, "ledgers_agree": False}, "report.html")


GREY, LIGHTER = (9, 9, 9), (10, 10, 10)


def learning_views(skipping=1, recorded=2):
    """Two Ulysses ranks that record requests of a picture each, then skip a step of each; learning took 5 s."""
    comparisons = []
    for holds in (False, True):
        made = Comparison()
        for number in range(recorded + skipping):
            is_recorded = number < recorded
            counts = (2, 0, page(False, False), True) if is_recorded else (1, 1, page(False, True))
            seconds = 1.5 if not is_recorded else 8.0 if number == recorded - 1 else 3.0
            colour = GREY if is_recorded else LIGHTER
            made.cached.served.append(served(seconds, [(number, colour)] * holds, *counts))
            made.uncached.served.append(served(3.0, [(number, GREY)] * holds))
        made.cached.plan, made.cached.promise, made.cached.seconds_learning = "learnt from 2 requests", 27.5, 5.0
        comparisons.append(made)
    ranks = enumerate(comparisons)
    return [summary.view(made, Topology(rank=rank, sequence_parallel_degree=2), True) for rank, made in ranks]


def test_figures_since_it_learnt_stand_beside_those_of_the_whole_job():
    figures, _ = figures_of(learning_views())
    assert figures["learning"] == {"requests": 2, "requests_by_rank": [2, 2], "seconds": 5.0}
    after = figures["after_switch"]
    assert (after["first_request"], after["num_images"]) == (2, 1)
    assert (after["speedup"], after["compute_ratio"]) == (2.0, 0.5)
    assert (figures["speedup"], figures["compute_ratio"]) == (pytest.approx(9 / 12.5), pytest.approx(5 / 6))
    assert figures["promised_db"] == 27.5


def test_exact_pictures_do_not_lift_the_means_and_json_stays_valid():
    figures, _ = figures_of(learning_views())
    assert figures["num_images_in_full"] == 2
    assert figures["psnr_db_each"] == [100.0, 100.0, pytest.approx(48.13, abs=0.01)]
    assert figures["psnr_db"]["mean"] == figures["psnr_db"]["min"] == pytest.approx(48.13, abs=0.01)
    json.dumps(figures, allow_nan=False)
    all_exact, _ = figures_of(learning_views(skipping=0))
    assert all_exact["psnr_db"] == {"mean": 100.0, "min": 100.0} and all_exact["after_switch"] is None


def test_the_last_line_tells_what_comes_after_learning():
    line = closing.line(figures_of(learning_views())[0], "report.html")
    assert "learnt from the first 2 requests in 5.0 s, since then 2.00x faster (3.0 s -> 1.5 s)" in line
    assert "PSNR 48.1 dB (promised 27.5), worst 48.1, 50% of block FLOPs" in line
    assert "all in all 1.39x slower (9.0 s -> 12.5 s)" in line
    line = closing.line(figures_of(learning_views(skipping=0))[0], "report.html")
    assert line.startswith("fastcache: 2 images, 2.5 s, all computed in full, to learn from: with ")
    assert not [word for word in ("faster", "slower", "PSNR", "since then") if word in line], "of the same work twice"


def drawn(tmp_path, parts):
    figures, _ = figures_of(parts)
    write_report(tmp_path / "report.html", figures, ["x"] * sum(len(image) for image in images(parts)), parts)
    return (tmp_path / "report.html").read_text()


def images(parts):
    return [request.images for part in parts for request in part.comparison.cached.served]


def test_the_report_draws_every_request_and_the_line_between(tmp_path):
    html = drawn(tmp_path, learning_views(skipping=2))
    before, after = html.split('<div class="switch">')
    assert before.count('class="cell computed"') == 4 and 'class="cell skipped"' not in before
    assert after.count('class="cell skipped"') == 2 and "learnt from 2 requests" in after
    assert "in 5.0 s" in after and "promised <b>27.5 dB</b>" in after and "measured <b>48.1 dB</b>" in after
    assert "2 of 4 images were computed in full and are exact" in html
    assert "3.0 s \N{RIGHTWARDS ARROW} 3.0 s" in before, "what learning took is not the request's own"


def test_no_more_requests_are_drawn_than_one_can_look_at(tmp_path):
    html = drawn(tmp_path, learning_views(skipping=MOST_REQUESTS))
    assert html.count(">request ") == MOST_REQUESTS and "2 more requests are not shown" in html


def test_images_are_saved_as_they_come_and_results_are_not_lost(tmp_path):
    output = OutputFolder(tmp_path / "job", overwrite=False)
    output.keep("cached", 3, Image.new("RGB", (4, 4)))
    output.keep("uncached", 3, Image.new("RGB", (4, 4)))
    output.write_summary({"speedup": 1.5})
    assert {path.name for path in (tmp_path / "job" / "images").iterdir()} == {"00003.png", "00003_uncached.png"}
    assert json.loads((tmp_path / "job" / "summary.json").read_text()) == {"speedup": 1.5}
    with pytest.raises(ValueError, match="--overwrite or another --output"):
        OutputFolder(tmp_path / "job", overwrite=False)
    OutputFolder(tmp_path / "job", overwrite=True)


def test_a_job_that_skipped_nothing_says_so():
    figures = {"num_images": 1, "seconds": 1.0, "compute_ratio": 1.0}
    assert "100% of block FLOPs, NOTHING WAS SKIPPED -> report" in closing.line(figures, "report")
    recording = figures | {"learning": {"requests": 1}}
    assert """with --cache_config '{"learn": 0}' steps are skipped at once""" in closing.line(recording, "report")
    assert "NOTHING" not in closing.line(figures | {"compute_ratio": 0.99}, "report")
