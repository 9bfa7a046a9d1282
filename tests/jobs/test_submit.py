"""What submit settles: seeds, sizes, and which items are generated together."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as some

from fastcache_xdit.jobs.recipe import BadLine, PromptLine
from fastcache_xdit.jobs.submit import items_of
from tests.jobs.jobs import items, recipe


def test_lines_take_what_they_lack_from_the_job():
    first, second = items(
        [{"prompt": "a"}, {"prompt": "b", "seed": 1, "steps": 9, "guidance": 0, "negative_prompt": "c"}]
    )
    assert (first.seed, first.steps, first.guidance, first.width, first.negative_prompt) == (7, 4, 2.5, 64, None)
    assert (second.seed, second.steps, second.guidance, second.negative_prompt) == (1, 9, 0.0, "c")


def test_a_size_that_the_model_cannot_make_fails_at_once():
    good, bad = items([{"prompt": "a", "width": 48}, {"prompt": "b", "width": 40}], pixels=16)
    assert good.state == "pending" and bad.state == "failed" and bad.batch is None
    assert bad.error == "40 x 64 pixels are not possible; this model takes multiples of 16"


def test_bad_lines_keep_their_place_and_seeds_do_not_shift():
    made = items_of([BadLine(text="?", reason="no"), PromptLine(prompt="b")], recipe(), 8)
    assert [(item.id, item.state, item.batch) for item in made] == [(0, "failed", None), (1, "pending", 0)]
    assert made[1].seed == 8


@given(some.lists(some.sampled_from([64, 128, 192])), some.integers(1, 4))
def test_batches_are_of_one_shape_and_full_but_for_the_last(widths, size):
    made = items([{"prompt": "a", "width": width} for width in widths], batch_size=size)
    shapes = {item.batch: item.width for item in made}
    counts = Counter(item.batch for item in made)
    assert all(shapes[item.batch] == item.width for item in made)
    assert all(count <= size for count in counts.values())
    for width in set(widths):
        ids = [item.batch for item in made if item.width == width]
        assert ids == sorted(ids) and len(set(ids)) == -(-len(ids) // size)
