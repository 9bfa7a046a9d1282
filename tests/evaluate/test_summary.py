"""Figures of a job from several ranks, on made-up runs whose figures are known."""

import json

import pytest
from PIL import Image

from fastcache_xdit.evaluate import summary
from fastcache_xdit.evaluate.compare import Comparison, RankResult
from fastcache_xdit.evaluate.output import OutputFolder
from fastcache_xdit.evaluate.report import write_report
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.parallel.topology import Topology

STEPS = 2


def page(*skips, segment="a.1"):
    return tuple(Entry(i, "fused", None, segment, skip, "because", 0.1, 0.01) for i, skip in enumerate(skips))


def run(seconds, images=(), computed=0, approximated=0, ledgers=()):
    made = RankResult(seconds=seconds, images={index: Image.new("RGB", (16, 16), value) for index, value in images})
    for name, count, is_computed in (("a.0", computed, True), ("a.1", approximated, False)):
        for _ in range(count):
            made.counters.note(name, 4, is_computed)
    made.counters.requests, made.counters.collectives = len(ledgers), 3 * len(ledgers)
    made.ledgers = list(ledgers)
    return made


def views(second=None):
    """Two Ulysses ranks: both compute and decide, the last one holds the images."""
    ledgers = [page(False, True)]
    first = Comparison(run(2.0, (), 3, 1, ledgers), run(4.0))
    last = Comparison(
        run(2.5, [(1, (0, 0, 0)), (0, (9, 9, 9))], 3, 1, [second or page(False, True)]),
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
        "num_images": 2,
        "cache_config": {"budget": 0.5},
        "seconds": 2.5,
    }
    prompts = ["a <script>", "y"]
    quality = summary.quality_figures(parts, prompts, None)
    return {**settings, **summary.cache_figures(parts, STEPS), **quality}, prompts


def test_the_report_needs_nothing_else_and_escapes_what_users_wrote(tmp_path):
    parts = views()
    figures, prompts = figures_of(parts)
    write_report(tmp_path / "report.html", figures, prompts, parts)
    html = (tmp_path / "report.html").read_text()
    assert "<script>" not in html and "a &lt;script&gt;" in html
    assert html.count("data:image/png;base64,") == 4
    assert not [word for word in ("http://", "https://", 'src="images') if word in html]
    assert "cell skipped" in html and "cell computed" in html and "1.80x" in html


def test_the_last_line_has_the_figures():
    figures, _ = figures_of(views())
    line = summary.line(figures, "report.html")
    assert line.startswith("fastcache: 2 images, 1.80x faster (4.5 s -> 2.5 s), PSNR 64.1 dB, worst 28.1")
    assert "75% of block FLOPs, ranks agree" in line and "\n" not in line
    assert "RANKS DISAGREE" in summary.line({**figures, "ledgers_agree": False}, "report.html")


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
