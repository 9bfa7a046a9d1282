"""An image is the same whatever its replica made before, and in whichever run its batch is made."""

from __future__ import annotations

import pytest
import torch

from shapes.loading import generation_defaults, model_path
from tests import tiny
from tests.parallel.launch import run_ranks

LAYOUTS = {"one": {}, "u2": {"ulysses_degree": 2}, "pp2": {"pipefusion_parallel_degree": 2, "num_pipeline_patch": 2}}
LIMIT = 600.0
FIRST, OTHER, SMALL, BROKEN, WRONG, NEIGHBOUR = 0, 1, 2, 3, 5, 4


@pytest.fixture(scope="module", params=[("shapes", "one"), ("shapes", "u2"), ("shapes", "pp2"), ("flux", "one")])
def made(request, tmp_path_factory):
    family, layout = request.param
    model, call = str(model_path("shapes-pixart")), generation_defaults("shapes-pixart")
    if family == "flux":
        model, call = str(tiny.checkpoint("flux", tmp_path_factory.mktemp("flux"))), {"max_sequence_length": 16}
    ranks = 1 if layout == "one" else 2
    return run_ranks("../jobs/images_worker.py", ranks, LIMIT, model=model, call=call, options=LAYOUTS[layout])


def test_an_image_does_not_depend_on_what_was_made_before(made):
    alone, other, small, *_, again, pair, small_again, pair_again, last = made[0]["outcomes"]
    assert alone == again == last and small == small_again and pair == pair_again
    assert all(kind == torch.float32 for kind in made[0]["positions"]), "as loaded: xDiT works them out in float64"
    assert len({alone[FIRST], other[OTHER], small[SMALL]}) == 3
    assert all(len(each[FIRST]) == 64 for each in (alone, pair)), "checksums, not errors"


def test_what_cannot_be_made_fails_with_its_reason_and_nothing_else_does(made):
    broken, wrong = made[0]["outcomes"][3:5]
    assert "not finite" in broken[BROKEN]
    assert wrong[WRONG] and len(wrong[WRONG]) != 64


def test_blocks_are_skipped_and_the_model_is_there_once(made):
    seconds, computed, approximated, ratio = made[0]["figures"][0]
    assert seconds > 0 and computed > 0 and approximated > 0 and 0 < ratio < 1
    assert all(rank["weights"] == 1 for rank in made)
    assert all(not outcomes for rank in made[1:] for outcomes in rank["outcomes"][:2]), "the first rank has them all"


def test_an_error_of_all_ranks_is_its_items_and_stages_start_again_behind_it(made, request):
    (told, after), *others = [rank["after"] for rank in made]
    assert told == "MemoryError: no room"
    stages = request.node.callspec.params["made"][1] == "pp2"
    assert all(each == after for _, each in others)
    assert after == ("messages between stages may be left from MemoryError: no room" if stages else None)
