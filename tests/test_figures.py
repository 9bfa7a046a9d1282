"""The figures of README and docs are those of the committed rows, and pictures are drawn from the same run."""

from __future__ import annotations

import json
import re

import pytest
from PIL import Image

from fastcache_xdit.bench.peers.curves import RUN, run_of
from fastcache_xdit.bench.peers.frontier import BUDGETS, best_other, by_peer, margins, rows_by_peer, within
from fastcache_xdit.bench.peers.study import studies
from tests.launchers import ROOT

BENCH = ROOT / "docs" / "bench"
KINDS = {"learnt": "FastCache, learnt", "pooled": "FastCache, pooled", "tuned": "FastCache, tuned"}
IDEA_MODELS, IDEA_BUDGETS = ("shapes-flux", "shapes-pixart"), ("1/2", "1/3", "1/4", "1/5")


@pytest.fixture(scope="module")
def found():
    return studies(BENCH)


def cells(line: str) -> list[str]:
    return [cell.strip(" *") for cell in line.strip("|\n").split("|")]


def test_the_picture_of_the_readme_is_drawn_from_the_rows_of_its_tables(found):
    assert "docs/bench/frontiers.png" in (ROOT / "README.md").read_text()
    assert Image.open(BENCH / "frontiers.png").text[RUN] == run_of(found), "write BENCHMARKS.md anew"


def test_the_table_of_the_comparison_is_that_of_the_rows(found):
    page = (ROOT / "docs" / "peers.md").read_text()
    model, checked = "", 0
    for line in page.splitlines():
        if named := re.match(r"\| `([\w-]+)`(?:, (\d+) steps)?: ", line):
            model, steps = named[1], int(named[2] or 20)
            (study,) = [
                each
                for each in found
                if each.conditions["ranks"] == 1
                and each.conditions["model"] == model
                and each.conditions["steps"] == steps
                and each.conditions["dtype"] == "float32"
            ]
            table, others = by_peer(study), margins(study)
        first, *values = cells(line) if line.startswith("|") else [""]
        kind = next((kind for kind in KINDS if first.endswith(f"FastCache, {kind}")), "")
        if model and kind:
            assert values == [f"{table[KINDS[kind]][budget]:.1f}" for budget in BUDGETS], line
            checked += 1
        if model and first == "the best other":
            assert values == [f"{margin.best:.1f}" for margin in others], line
        if model and first == "which is":
            assert values == [margin.peer for margin in others], line
        if model and first.startswith("tuned, ahead"):
            rows = rows_by_peer(study)[KINDS["tuned"]]
            ours = [within(rows, budget) for budget in BUDGETS.values()]
            ahead = [row["scores"]["psnr_db"] - best_other(study, row["compute"]) for row in ours]
            assert values == [f"{each:+.1f}" for each in ahead], line
            checked += 1
    assert checked == 14, "learnt and pooled of four studies, tuned and what it is ahead of three"


@pytest.mark.parametrize("model", ["shapes-flux", "shapes-pixart", "shapes-video"])
def test_the_table_of_worst_pictures_is_that_of_the_rows(model):
    (study,) = [each for each in studies(ROOT / "docs" / "worst-pictures") if each.conditions["model"] == model]
    assert study.conditions["count"] == 128
    page, at = (ROOT / "docs" / "peers.md").read_text(), ""
    told = {}
    for line in page[page.index("## The worst pictures") :].splitlines():
        first, *values = cells(line) if line.startswith("|") else [""]
        at = first.strip("`") or at
        if at == model and len(values) == 5:
            told[values[0]] = values[1:]
    rows = {f"{row['peer']}: {row['setting']}": row for row in study.ran()}
    assert told.keys() <= rows.keys() and len(told) >= 5
    for name, values in told.items():
        scores = rows[name]["scores"]
        figures = [scores["psnr_db"], scores["psnr_db_p5"], scores["psnr_db_min"]]
        assert values == [f"{100 * rows[name]['compute']:.0f} %", *(f"{figure:.1f}" for figure in figures)], name
    for figure in ("psnr_db", "psnr_db_p5", "psnr_db_min"):  # none is left out that is the best of the others
        best = max((row for row in study.ran() if not row.get("ours")), key=lambda row: row["scores"][figure])
        assert f"{best['peer']}: {best['setting']}" in told, figure


def test_the_table_of_the_readme_has_what_needs_no_calibration_beside_what_was_tuned(found):
    lines = (ROOT / "README.md").read_text().splitlines()
    for study in found:
        conditions = study.conditions
        if (conditions["ranks"], conditions["steps"], conditions["dtype"]) != (1, 20, "float32"):
            continue
        (line,) = [line for line in lines if line.startswith(f"| `{conditions['model']}` | ")]
        table, best = by_peer(study), {margin.budget: margin.best for margin in margins(study)}
        kinds = [KINDS[kind] for kind in ("pooled", "learnt", "tuned")]
        for budget, told in zip(("1/2", "1/3", "1/4"), cells(line)[1:], strict=True):
            values = [*(table[kind][budget] for kind in kinds), best[budget]]
            assert told == " / ".join(f"{value:.1f}" for value in values), conditions["model"]


def section(title: str) -> dict[str, list[str]]:
    """The tables of a section of what we tried: the cells of each line by its first one."""
    page = (ROOT / "docs" / "what-we-tried.md").read_text()
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    return {first: values for first, *values in map(cells, found.splitlines())}


def gains(model: str, kind: str, plain: str) -> dict[str, list[str]]:
    """Gains of each idea over the plain one at four budgets, and a dash where there is no row."""
    rows = json.loads((BENCH / "ideas" / f"{model}-16{kind}.json").read_text())
    means = {(row["idea"], row["budget"]): row["psnr_db"] for row in rows}
    return {
        idea: [gain(means.get((idea, budget)), means.get((plain, budget))) for budget in IDEA_BUDGETS]
        for idea, _ in means
    }


def gain(mean: float | None, plain: float | None) -> str:
    told = "–" if mean is None or plain is None else f"{mean - plain:+.1f}"
    return "0.0" if told in ("+0.0", "-0.0") else told


@pytest.mark.parametrize(
    "title, kind, plain, models, ideas",
    [
        ("What is weighed at a skipped step", "", "last three outputs", IDEA_MODELS, 9),
        ("What is weighed, on clips", "", "last three outputs", ("shapes-video",), 9),
        ("A few blocks run at a skipped step", "-blocks", "last three outputs and the latents", IDEA_MODELS, 11),
        ("A few blocks, on clips", "-blocks", "last three outputs and the latents", ("shapes-video",), 11),
        ("Noise levels chosen together with the mask", "-levels", "last three outputs and the latents", IDEA_MODELS, 6),
        ("Noise levels, on clips", "-levels", "last three outputs and the latents", ("shapes-video",), 6),
    ],
)
def test_the_tables_of_ideas_are_those_of_the_rows(title, kind, plain, models, ideas):
    table, found = section(title), [gains(model, kind, plain) for model in models]
    assert all(len(each) == ideas for each in found)
    for idea in found[0].keys() - {plain}:
        told = [value for each in found for value in each[idea]]
        assert table[idea][: len(told)] == told, idea


@pytest.mark.parametrize("model", IDEA_MODELS)
def test_the_gains_of_moved_levels_on_more_prompts_are_those_of_the_rows(model):
    table = section("Noise levels chosen together with the mask")
    rows = json.loads((BENCH / "ideas" / f"{model}-16-levels-again.json").read_text())
    rows = sorted(rows, key=lambda row: row["budget"])
    told = [f"{row['gain_db']:+.2f} ± {row['standard_error_db']:.2f}" for row in rows]
    assert table[f"`{model}`, gain"] == told
    told = ["{:.1f}, {:.1f}".format(*row["percentile_5_db"]) for row in rows]
    assert table[f"`{model}`, 5th percentile"] == told


@pytest.mark.parametrize("model", IDEA_MODELS)
def test_what_tells_the_worst_pictures_is_that_of_the_rows(model):
    page = (ROOT / "docs" / "what-we-tried.md").read_text()
    page = page[page.index("## Telling the worst pictures in time") :]
    tables = {first: values for first, *values in map(cells, page[: page.index("\n* **")].splitlines())}
    rows = json.loads((BENCH / "ideas" / f"{model}-16-tail.json").read_text())
    assert [(row["budget"], row["judged"]) for row in rows] == [(budget, 128) for budget in IDEA_BUDGETS]
    first = len(rows) * IDEA_MODELS.index(model)
    places = [str(row["spent_after"]) for row in rows]
    told = {
        "looked at step": places,
        "what is seen there": [f"{row['seen'][at]:.2f}" for row, at in zip(rows, places, strict=True)],
        "the true distance there": [f"{row['true'][at]:.2f}" for row, at in zip(rows, places, strict=True)],
        "the true distance at step 15": [f"{row['true']['15']:.2f}" for row in rows],
    }
    for name, values in told.items():
        assert tables[name][first : first + len(rows)] == values, name
    names = {
        "the plan": None,
        "half of them, by chance": "spent_by_chance",
        "those that stand out": "spent_as_seen",
        "those that the plan will lose": "spent_as_lost",
        "a step more for all": "one_more_for_all",
    }
    for name, key in names.items():
        scores = [row[key] if key else row for row in rows]
        values = ["{psnr_db:.1f}, {percentile_5_db:.1f}, {worst_db:.1f}".format(**each) for each in scores]
        assert tables[f"`{model}`: {name}"] == values, name


def test_what_a_step_costs_is_what_the_profile_printed():
    rows = json.loads((BENCH / "profile" / "overhead-20.json").read_text())["profile_ms"]
    page = (ROOT / "docs" / "gpu.md").read_text()
    plain = {"skipped": "without blocks", "computed": "uncached", "computed after a test": "uncached"}
    models, checked = {"57 blocks": "flux.1 depth", "`shapes-pixart`": "shapes-pixart"}, 0
    for line in page.splitlines():
        model, _, step = cells(line)[0].partition(": ") if line.startswith("|") else ("", "", "")
        if model in models:
            row = rows[models[model]]
            with_cache = row["tested" if step == "computed after a test" else step]
            without, *told = cells(line)[1:]
            assert float(without.split(",")[0]) == round(row[plain[step]]["whole"], 2), line
            assert list(map(float, told)) == [round(with_cache[name], 2) for name in ("whole", "own")], line
            checked += 1
    assert checked == 4
