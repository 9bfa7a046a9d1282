"""Merging finds the clusters that are there, keeps their mean, and undoes itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from fastcache_xdit.tokens.density import importance, neighbourhood
from fastcache_xdit.tokens.merging import KeepAll, cluster, merging
from fastcache_xdit.tokens.windows import Windows
from tests.tokens.drawing import DTYPES, PROPERTY, merge_options, random, tokens

# two clusters, about (1, 0) and (0, 1), in each window of four; the last window is short
TWO = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.1, 0.0], [0.0, 1.1], [0.0, 1.0], [0.0, 1.1], [1.0, 0.0]]])


def test_two_clusters_become_their_weighted_means():
    near = neighbourhood(TWO, Windows.of(7, 4, 0.5))
    weight = torch.tensor([[3.0, 1.0, 1.0, 4.0, 2.0, 2.0, 1.0]])
    found = cluster(near, weight)
    assert found.assignment.tolist() == [[0, 1, 0, 1, 2, 2, 3]]
    assert found.centres.index.tolist() == [[0, 3, 4, 6]]
    torch.testing.assert_close(found.weights, torch.tensor([[0.75, 0.2, 0.25, 0.8, 0.5, 0.5, 1.0]]))
    means = torch.tensor([[[1.025, 0.0], [0.0, 1.08], [0.0, 1.05], [1.0, 0.0]]])
    torch.testing.assert_close(found.merge(TWO), means)


def test_unmerging_copies_the_output_and_adds_the_residual():
    found = cluster(neighbourhood(TWO, Windows.of(7, 4, 0.5)), torch.ones(1, 7))
    merged = found.merge(TWO)
    out = found.unmerge(merged + torch.tensor([[[10.0], [20.0], [30.0], [40.0]]]), TWO, merged)
    gain = torch.tensor([10.0, 20.0, 10.0, 20.0, 30.0, 30.0, 40.0])
    torch.testing.assert_close(out, TWO + gain[None, :, None])


def test_centres_are_the_important_tokens_that_nothing_stands_for_yet():
    """The second most important token lies beside the first, so the third, far off, is the other centre."""
    x = torch.tensor([[[0.0], [0.1], [5.0], [5.2]]])
    found = cluster(neighbourhood(x, Windows.of(4, 4, 0.5)), torch.tensor([[1.0, 0.9, 0.5, 0.4]]))
    assert found.centres.index.tolist() == [[0, 2]]
    assert found.assignment.tolist() == [[0, 0, 1, 1]]


def test_ties_go_to_the_lower_index():
    found = merging(torch.ones(2, 6, 3), None, 0.5, 4, 2, 0.0)
    assert found.centres.index.tolist() == [[0, 1, 4]] * 2
    assert found.assignment.tolist() == [[0, 1, 0, 0, 2, 2]] * 2


@PROPERTY
@given(tokens(), merge_options(), st.booleans())
def test_every_cluster_is_whole(x, options, moved):
    ratio, window, *rest = options
    found = merging(x, x.roll(1, 1) if moved else None, ratio, window, *rest)
    check_clusters(found, x)
    totals = torch.zeros(len(x), found.windows.merged).scatter_add(1, found.assignment, found.weights)
    torch.testing.assert_close(totals, torch.ones_like(totals))


@PROPERTY
@given(tokens(broken=True), merge_options())
def test_broken_numbers_stay_in_their_window(x, options):
    found = merging(x, x.roll(1, 1), *options)
    check_clusters(found, x)
    assert found.weights.isfinite().all()
    intact = found.windows.split(x.float()).isfinite().all(dim=3).all(dim=2)[..., None]
    there = found.windows.split(found.unmerge(found.merge(x), x, found.merge(x)).float()).isfinite().all(dim=3)
    assert (there | ~intact).all()


def check_clusters(found, x):
    """Every token lies in a cluster of its own window, and every centre in the cluster that it leads."""
    places = found.centres.index
    assert places.shape == (len(x), found.windows.merged) and (places.diff(dim=1) > 0).all()
    assert torch.equal(found.assignment.gather(1, places), torch.arange(found.windows.merged).expand_as(places))
    leader = places.gather(1, found.assignment)
    own = torch.arange(x.shape[1]).expand_as(leader)
    assert torch.equal(leader // found.windows.size, own // found.windows.size)


@PROPERTY
@given(tokens(), merge_options())
def test_tokens_join_the_nearest_centre(x, options):
    found = merging(x, None, *options)
    leader = found.centres.index.gather(1, found.assignment)
    for row, places, leaders in zip(x.float(), found.centres.index, leader, strict=True):
        apart = (row[:, None] - row[places]).norm(dim=2)
        own = torch.arange(len(row))[:, None] // found.windows.size == places // found.windows.size
        nearest = apart.where(own, torch.inf).amin(dim=1)
        torch.testing.assert_close((row - row[leaders]).norm(dim=1), nearest, rtol=1e-4, atol=1e-5)


@PROPERTY
@given(tokens(), merge_options())
def test_unmerging_what_was_merged_gives_the_tokens_back(x, options):
    found = merging(x, x.roll(1, 1), *options)
    merged = found.merge(x)
    assert merged.dtype == x.dtype
    assert torch.equal(found.unmerge(merged, x, merged), x)


@PROPERTY
@given(DTYPES, merge_options(), st.integers(1, 40))
def test_equal_tokens_leave_no_residual(dtype, options, total):
    x = random(0, 2, 1, 4).expand(2, total, 4).to(dtype)
    found = merging(x, None, *options)
    merged = found.merge(x)
    torch.testing.assert_close(merged, x[:, : merged.shape[1]])
    torch.testing.assert_close(found.unmerge(merged * 2, x, merged), x * 2)


@PROPERTY
@given(merge_options(), st.integers(0, 1000))
def test_shards_of_whole_windows_merge_as_one_process_does(options, seed):
    ratio, window, neighbours, weight = options
    now, before = random(seed, 2, 2, 3 * window, 4)
    whole = merging(now, before, ratio, window, neighbours, weight)
    parts = zip(now.split(window, 1), before.split(window, 1), strict=True)
    shards = [merging(one, other, ratio, window, neighbours, weight) for one, other in parts]
    keep = whole.windows.keep
    together = torch.cat([shard.assignment + rank * keep for rank, shard in enumerate(shards)], dim=1)
    assert torch.equal(together, whole.assignment)
    torch.testing.assert_close(torch.cat([shard.weights for shard in shards], dim=1), whole.weights)


@PROPERTY
@given(tokens(), merge_options())
def test_samples_do_not_see_each_other(x, options):
    together = merging(x, None, *options)
    alone = merging(x[:1], None, *options)
    assert torch.equal(together.assignment[:1], alone.assignment)


def test_ratio_one_changes_nothing():
    x = random(0, 2, 10, 3)
    found = merging(x, x, 1.0, 4, 2, 1.0)
    assert isinstance(found, KeepAll)
    assert found.merge(x) is x and found.unmerge(x, x + 1, x + 2) is x and found.take_centres(x) is x


@pytest.mark.parametrize("ratio, window", [(0.0, 4), (1.1, 4), (0.5, 0), (1.0, 0)])
def test_impossible_options_are_refused(ratio, window):
    with pytest.raises(ValueError, match="give"):
        merging(torch.zeros(1, 8, 2), None, ratio, window, 2, 0.0)


def test_rotary_tables_follow_the_centres():
    found = merging(TWO.expand(2, -1, -1), None, 0.5, 4, 1, 0.0)
    table = random(0, 7, 6)
    taken = found.take_centres(table[None])
    assert torch.equal(taken, table[found.centres.index])
    assert torch.equal(found.take_centres(table.expand(2, -1, -1)), taken)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            self.elements = max(self.elements, each.numel() if isinstance(each, torch.Tensor) else 0)
        return out


def test_memory_grows_with_the_window_not_the_square():
    total, window = 16_384, 64
    x = random(0, 1, total, 16)
    with Largest() as largest:
        found = merging(x, x.roll(1, 1), 0.5, window, 5, 1.0)
        found.unmerge(found.merge(x), x, found.merge(x))
    assert found.windows.merged == total // 2
    assert largest.elements == total * window


def test_nothing_is_read_back_from_the_device():
    """The meta device has no numbers: whatever asks for one fails, and so does a tensor made elsewhere."""
    x = torch.zeros(2, 100, 8, dtype=torch.bfloat16, device="meta")
    found = merging(x, x, 0.5, 16, 5, 1.0)
    out = found.unmerge(found.merge(x), x, found.merge(x))
    assert out.shape == x.shape and found.take_centres(x).shape == (2, 50, 8)
    assert importance(x, x, neighbourhood(x, found.windows), 5, 1.0).device.type == "meta"
