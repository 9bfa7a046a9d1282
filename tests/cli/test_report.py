"""`report`: one page that a browser opens without complaint, and Markdown."""

import json
import re

import pytest
from PIL import Image

from fastcache_xdit.bench.peers.results import slug
from fastcache_xdit.cli.main import main
from tests.bench.peers.rows import CONDITIONS, row
from tests.browser import needs_chromium, picture_of

ROWS = [
    row("FastCache, tuned", "third", 0.33, 41.0),
    row("FastCache, tuned", "half", 0.5, 50.0),
    row("other", "b", 0.32, 30.0),
    row("other", "a", 0.6, 45.0, restored=False),
    {"peer": "a third", "setting": "x", "status": "refused", "error": "ValueError: no <b>such</b> model | x"}
    | {"scores": None, "speedup": None, "compute": None, "steps": []},
]


@pytest.fixture
def folder(tmp_path):
    for ranks in (1, 2):
        made = tmp_path / str(ranks)
        (made / "images").mkdir(parents=True)
        layout = {"ranks": ranks, "layout": "1" if ranks == 1 else "ulysses2"}
        (made / "conditions.json").write_text(json.dumps(CONDITIONS | layout))
        rows = [row("uncached", "", 1.0, 100.0), *ROWS]
        (made / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        for each in rows:
            for number in range(2):
                name = f"{slug(each['peer'], each['setting'])}-{number}.webp"
                Image.new("RGB", (32, 32), (200, 40 * number, 40)).save(made / "images" / name)
    return tmp_path


def test_the_page_says_what_was_found(folder):
    assert main(["report", str(folder), "--markdown", str(folder / "B.md")]) == 0
    page, tables = (folder / "report.html").read_text(), (folder / "B.md").read_text()
    assert "refused" in page
    assert "&lt;b&gt;such" in page, "errors are text"
    assert "2.00x (1.50 to 2.50, 3 runs)" in page, "no ratio without its spread and repetitions"
    assert "ulysses2" in page, "gain kept on two ranks"
    assert "http" not in page.replace("http-equiv", ""), "nothing is fetched"
    assert "| FastCache, tuned | third | 33.0 % |" in tables
    assert "left something behind" in tables


def test_a_phone_shows_the_numbers_of_the_axes(folder):
    main(["report", str(folder)])
    page = (folder / "report.html").read_text()
    hidden = re.search(r'\.plot text\[transform\*="(.*?)"\] { display: none; }', page)[1]
    turned = re.findall(r'<text[^>]* transform="(.*?)"', page)
    assert sum(hidden in each for each in turned) == 2 < len(turned) / 4, "the label beside each of two charts alone"


def test_speed_at_full_size_is_a_table_of_its_own(folder):
    ran, crashed = row("fewer steps", "1/2", 0.5, 0.0), {"peer": "other", "setting": "a", "status": "crashed"}
    rows = [ran | {"scores": None, "transformer": 0.48}, crashed | {"error": "ValueError: no", "speedup": None}]
    known = {name: CONDITIONS[name] for name in ("dtype", "versions", "machine", "date", "command")}
    call = {"num_inference_steps": 4, "width": 64, "height": 32}
    conditions = {**known, "architecture": "flux.1-dev", "call": call}
    (folder / "speed-flux.1-dev.json").write_text(json.dumps({"conditions": conditions, "rows": rows}))
    main(["report", str(folder), "--markdown", str(folder / "B.md")])
    tables = (folder / "B.md").read_text()
    assert "## Speed at full size: flux.1-dev" in tables and "64 x 32" in tables
    assert "| fewer steps | 1/2 | 48.0 % | 2.00x (1.50 to 2.50, 3 runs) | 0.96 |" in tables
    assert "| other | a | crashed: ValueError: no | | |" in tables


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no results" in capsys.readouterr().err


@needs_chromium
def test_a_browser_opens_the_page(folder, tmp_path):
    main(["report", str(folder)])
    image = picture_of(folder / "report.html", tmp_path, 1100, 1700)
    assert len(image.getcolors(1 << 20)) > 50, "something is drawn"
