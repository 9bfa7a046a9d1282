"""The results folder: what is there is not run again, under the same conditions only."""

import json

import pytest
import torch

from fastcache_xdit.bench.peers.measurement import Measurement
from fastcache_xdit.bench.peers.results import Results, write_csv
from fastcache_xdit.bench.peers.study import RESULTS, studies
from tests.bench.peers.rows import CONDITIONS, row


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path, CONDITIONS)
    made.add(Measurement("uncached", "", "ran", compute=1.0, pictures=torch.zeros(6, 3, 8, 8)))
    made.add(Measurement("other", "a", "crashed", error="ValueError: no\nand more"))
    return made


def test_what_is_there_is_known(results):
    assert results.measured() == {("uncached", ""), ("other", "a")}


def test_a_line_cut_short_is_run_again(results):
    with (results.folder / RESULTS).open("a") as lines:
        lines.write('{"peer": "other", "sett')
    assert ("other", "a") in results.measured()
    assert len(results.measured()) == 2


def test_a_line_after_one_cut_short_is_kept(results):
    (results.folder / RESULTS).write_text('{"peer": "other", "sett')
    results = Results(results.folder, CONDITIONS)
    results.add(Measurement("other", "b", "crashed", error="ValueError: no"))
    assert results.measured() == {("other", "b")}


def test_other_conditions_are_refused(results):
    Results(results.folder, CONDITIONS | {"date": "later"})
    with pytest.raises(ValueError, match="another seed"):
        Results(results.folder, CONDITIONS | {"seed": 1})


def test_a_few_pictures_are_kept(results):
    assert len(list((results.folder / "images").iterdir())) == 4


def test_a_folder_is_read_back_in_the_order_of_tables(results):
    with (results.folder / RESULTS).open("a") as lines:
        lines.write(json.dumps(row("FastCache, tuned", "half", 0.5, 50.0)) + "\n")
    (study,) = studies(results.folder)
    assert study.peers() == ["FastCache, tuned", "other"]
    assert study.uncached["compute"] == 1.0
    assert "half" in write_csv(study).read_text()


def test_a_folder_without_results(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        studies(tmp_path)
