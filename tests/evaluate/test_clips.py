"""A job that makes clips: its figures frame by frame, its files, and its report with players."""

from __future__ import annotations

import pytest
from PIL import Image

from fastcache_xdit.clips import Clip
from fastcache_xdit.evaluate import closing, summary
from fastcache_xdit.evaluate.compare import Comparison, RankResult, Served
from fastcache_xdit.evaluate.learning import learning_figures
from fastcache_xdit.evaluate.output import OutputFolder
from fastcache_xdit.evaluate.report import MOST_CLIPS, write_report
from fastcache_xdit.parallel.ledger import Entry
from fastcache_xdit.parallel.topology import Topology
from tests.browser import needs_chromium, picture_of

RED, REDDER = (200, 10, 10), (210, 10, 10)
WIDE, NARROW, HIGH = 1100, 500, 1500


def clip(*colours):
    return Clip(tuple(Image.new("RGB", (64, 64), colour) for colour in colours), 8)


def view(count=1):
    """One rank; the second frame of each cached clip is off by 10 in a third of its values."""
    ledger = (Entry(0, "fused", None, "a", False, "first", 0, 0), Entry(1, "fused", None, "a", True, "plan", 0, 0))
    cached, uncached = ({index: clip(*colours) for index in range(count)} for colours in ((RED, REDDER), (RED, RED)))
    runs = RankResult([Served(1.0, cached, ledger=ledger)]), RankResult([Served(2.0, uncached)])
    return summary.view(Comparison(*runs), Topology(), True)


def figures_of(views, count=1):
    figures = {"model": "m", "world_size": 1, "parallel": {}, "num_inference_steps": 2, "num_images": count}
    figures |= {"cache_config": None, **summary.clip_figures(views), "compute_ratio": 0.5}
    figures |= {"ledgers_agree": True, "collectives_per_step": 0.0, "fixes": []}
    figures |= summary.quality_figures(views, ["red"] * count, None)
    return figures | learning_figures(views, figures)


def test_figures_are_of_clips_and_of_frames():
    figures = figures_of([view()])
    worst = pytest.approx(28.13 + 4.77, abs=0.01)
    assert figures["clips"] == {"num_frames": 2, "fps": 8}
    assert figures["psnr_db"]["mean"] == pytest.approx(28.13 + 4.77 + 3.01, abs=0.01)
    assert figures["frames"]["psnr_db"] == {"mean": pytest.approx((100 + 32.9) / 2, abs=0.01), "min": worst}
    assert figures["frames"]["ssim"]["min"] < figures["ssim"]["mean"] < 1
    assert [each["psnr_db"]["min"] for each in figures["frames"]["each"]] == [worst]
    assert closing.line(figures, "x").startswith("fastcache: 1 clip, 2.00x faster (2.0 s -> 1.0 s), PSNR 35.9 dB")
    assert ", worst frame 32.9," in closing.line(figures, "x")


def test_clips_are_saved_as_they_come(tmp_path):
    output = OutputFolder(tmp_path, overwrite=False)
    output.keep("cached", 3, clip(RED, REDDER))
    output.keep("uncached", 3, clip(RED, RED))
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"00003.mp4", "00003_uncached.mp4"}
    assert (tmp_path / "images" / "00003.mp4").read_bytes() == clip(RED, REDDER).mp4()


def report(tmp_path, count=1):
    views = [view(count)]
    write_report(tmp_path / "report.html", figures_of(views, count), ["red"] * count, views)
    return tmp_path / "report.html"


def test_the_report_has_players_and_needs_nothing_else(tmp_path):
    html = report(tmp_path).read_text()
    assert html.count('<video src="data:video/mp4;base64,') == 2
    assert html.count(" muted autoplay loop playsinline></video>") == 2
    assert "worst frame 32.9" in html and "1 clip of 2 frames" in html and "Drag over" not in html
    assert not [word for word in ("http://", "https://", 'src="images') if word in html]


def test_no_more_clips_are_shown_than_a_page_can_hold(tmp_path):
    html = report(tmp_path, MOST_CLIPS + 2).read_text()
    assert html.count("<video ") == 2 * MOST_CLIPS and "2 more in the images folder" in html


@needs_chromium
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_browser_plays_both_side_by_side(tmp_path, width):
    image = picture_of(report(tmp_path), tmp_path, width, HIGH)
    red = [max(abs(value - wanted) for value, wanted in zip(pixel, RED, strict=True)) < 20 for pixel in image.getdata()]
    columns = [sum(red[column::width]) for column in range(width)]
    left = next(column for column in range(width) if columns[column])
    assert sum(map(bool, columns)) > min(width - 60, 400), "as wide as two players"
    assert not all(columns[left : left + sum(map(bool, columns))]), "with a gap between them"
