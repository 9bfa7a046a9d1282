"""The report of a job: what a reader can do with its pictures, and what it says of how it was run."""

from __future__ import annotations

import pytest
from PIL import Image

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.evaluate import closing, summary
from fastcache_xdit.evaluate.compare import Comparison, RankResult, Served
from fastcache_xdit.evaluate.learning import learning_figures
from fastcache_xdit.evaluate.report import write_report
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.parallel.topology import Topology
from tests.browser import needs_chromium, picture_of

BACKGROUND, SHAPE, OTHER = (20, 20, 30), (200, 10, 10), (210, 10, 10)
RUN = {"date": "2026-11-27 09:07 UTC", "machine": "2 cores", "command": "python -m fastcache_xdit generate --model m"}


def picture(colour):
    """A square at the left, in columns 8 to 24 of 64."""
    image = Image.new("RGB", (64, 64), BACKGROUND)
    image.paste(colour, (8, 24, 24, 40))
    return image


def report(folder, topologies=(), **config):
    """Write the report of one picture on these ranks; return its figures and its path."""
    ledger = tuple(Entry(step, "fused", None, "a", step % 2 > 0, "plan", 0, 0) for step in range(30))
    views = []
    for topology in topologies or [Topology()]:
        cached = RankResult([Served(1.0, {0: picture(OTHER)}, ledger=ledger)])
        uncached = RankResult([Served(2.0, {0: picture(SHAPE)})])
        views.append(summary.view(Comparison(cached, uncached), topology, True))
    figures = {"model": "m", "world_size": len(views), "parallel": {}, "num_inference_steps": 30, "num_images": 1}
    figures |= {"cache_config": FastCacheConfig(**config).to_dict(), "compute_ratio": 0.5, "fixes": [], **RUN}
    figures |= {"collectives_per_step": 0.0, "ledgers_agree": True}
    figures["agreeing_ranks"] = max(len(view.agreeing) for view in views)
    figures |= summary.quality_figures(views, ["red"], None)
    figures |= learning_figures(views, figures)
    write_report(folder / "report.html", figures, ["red"], views)
    return figures, folder / "report.html"


@pytest.mark.parametrize(
    "degrees, said",
    [({}, False), ({"pipefusion_parallel_degree": 2}, False), ({"sequence_parallel_degree": 2}, True)],
)
def test_ranks_agree_only_where_there_are_several_that_must(tmp_path, degrees, said):
    ranks = 2 if degrees else 1
    figures, page = report(tmp_path, [Topology(rank=rank, **degrees) for rank in range(ranks)])
    assert ("took the same decisions" in page.read_text()) is said
    assert ("ranks agree" in closing.line(figures, page)) is said


def test_settings_that_differ_come_first_with_what_they_mean(tmp_path):
    html = report(tmp_path, budget=0.4)[1].read_text()
    first, _, usual = html.partition("<h2>Settings</h2>")[2].partition("<details>")
    assert RUN["command"] in first and "<td>budget</td><td><b>0.4</b>" in first
    assert "<td>learn</td>" in usual and "<td>learn</td>" not in first and "options at their defaults" in usual
    assert RUN["date"] in html and RUN["machine"] in html


def test_the_slider_starts_over_a_shape_and_one_picture_is_large(tmp_path):
    html = report(tmp_path)[1].read_text()
    (start,) = {int(part.split('"')[0]) for part in html.split('max="100" value="')[1:]}
    assert 8 / 64 < start / 100 < 24 / 64 and f"--split: {start}%" in html
    assert 'class="pairs one"' in html and html.count('data-way="flip"') == html.count('data-way="difference"') == 1


@needs_chromium
def test_a_reader_sees_reasons_by_tap_the_difference_and_that_the_grid_scrolls(tmp_path):
    _, page = report(tmp_path)
    tap = """<script>document.querySelector(".cell.skipped").click();
      document.querySelector("[data-way=difference]").click();
      const shown = (name) => getComputedStyle(document.querySelector(name)).display !== "none";
      const works = document.querySelector(".told").textContent.startsWith("step 1: skipped (plan)") && shown(".cue");
      document.documentElement.style.background = document.body.style.background = works ? "#0f0" : "#f00";</script>"""
    page.write_text(page.read_text().replace("</body>", tap + "</body>"))
    image = picture_of(page, tmp_path, 500, 1600)
    assert image.getpixel((2, 2)) == (0, 255, 0), "the reason is told, and a cue is there on a narrow screen"
    counts = {colour: count for count, colour in image.getcolors(1 << 20)}
    assert max(red for (red, green, blue), n in counts.items() if n > 500 and green + blue < 20) in range(90, 110)
    assert SHAPE not in counts, "all else is black: ten times a difference of ten"
