"""Keys and values of skipped patches, against hand-computed values: two patches of one row each."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit.clock import Clock, Patch
from fastcache_xdit.host.xdit.pipefusion.keys_values import PatchKeysValues, spans_of

LAYER = torch.nn.Identity()


class Manager:
    """xDiT's store, reduced to one layer."""

    def __init__(self) -> None:
        self.cache = {("attn", LAYER): self}
        self.tensors = [None]


class Fitted:
    """Weights that a calibration might know."""

    def knows(self, name: str) -> bool:
        return name in ("attn keys", "attn values")

    def weights(self, name: str, step: int, known: tuple[int, int]) -> list[float]:
        assert (step, known) == (3, (1, 0))
        return {"attn keys": [0.5, 0.25], "attn values": [2.0, -1.0]}[name]


class Store:
    """One request's keys [1, 2 rows, 1] and values, which are the same, asked for as xDiT does; gives the keys."""

    def __init__(self, bounds=(0, 1, 2), layers=(LAYER,), forecast=None) -> None:
        self.clock, self.manager = Clock(), Manager()
        self.extended = PatchKeysValues(self.clock, dict.fromkeys(layers, "attn"), lambda: list(bounds), forecast)
        self._update = self.extended.wrapped(self._write)
        self.begin()

    def begin(self) -> None:
        self.clock.begin_request(10)

    def full(self, *keys: float) -> list[float]:
        with self.clock.tick():
            return self._ask(*keys)

    def patch(self, patch: int, *keys: float) -> list[float]:
        with self.clock.tick(Patch(patch, (patch, patch + 1), False)):
            return self._ask(*keys)

    def skip(self) -> None:
        with self.clock.tick(Patch(0, (0, 1), False)):
            pass

    def held(self) -> list[float]:
        return self.manager.tensors[0][0, :, 0].tolist()

    def _ask(self, *keys: float) -> list[float]:
        new = torch.tensor(keys, dtype=torch.float32).reshape(1, -1, 1).repeat(1, 1, 2)
        self.asked = self._update(self.manager, new, LAYER)
        return self.asked[0, :, 0].tolist()

    def _write(self, manager, new_kv, layer, slice_dim, layer_type):
        if self.clock.now is None or self.clock.now.patch is None:
            manager.tensors[0] = new_kv
        else:
            manager.tensors[0][:, self.clock.now.patch] = new_kv[:, 0]
        return manager.tensors[0]


def teach(store: Store) -> Store:
    """Rows 10, 20 at step 0 and 11, 22 at step 1; steps 2 and 3 were skipped."""
    store.full(10, 20)
    store.patch(0, 11)
    store.patch(1, 22)
    store.skip()
    store.skip()
    return store


@pytest.fixture
def taught() -> Store:
    return teach(Store())


def test_what_is_one_step_old_is_left_alone():
    store = Store()
    assert store.full(10, 20) == [10, 20]
    assert store.patch(0, 11) == [11, 20]
    assert store.patch(1, 22) == [11, 22]


def test_a_later_patch_is_taken_to_the_step_before_and_an_earlier_one_is_there(taught):
    assert taught.patch(0, 14) == [14, 26]  # 22 at step 1, 2 more with each step: 26 at step 3
    assert taught.patch(1, 30) == [14, 30]


def test_an_earlier_patch_that_was_skipped_alone_is_taken_to_this_step(taught):
    taught.patch(0, 14)
    taught.patch(1, 30)
    taught.skip()
    assert taught.patch(1, 34) == pytest.approx([15, 34])  # 11 at step 1, 14 at step 4: 15 at step 5


def test_the_store_keeps_what_was_computed(taught):
    taught.patch(0, 14)
    assert taught.held() == [14, 22]
    taught.patch(1, 31)
    taught.skip()
    assert taught.patch(0, 16) == pytest.approx([16, 34])  # 22 at step 1, 31 at step 4: 34 at step 5


def test_two_full_steps_are_a_line_to_follow():
    store = Store()
    store.full(10, 20)
    store.full(11, 22)
    store.skip()
    assert store.patch(0, 13) == [13, 24]


def test_with_a_single_step_to_go_by_it_is_reused():
    store = Store()
    store.full(10, 20)
    store.skip()
    assert store.patch(0, 13) == [13, 20]


def test_a_calibration_gives_weights_for_keys_and_others_for_values():
    store = teach(Store(forecast=Fitted()))
    assert store.patch(0, 14) == [14, 0.5 * 22 + 0.25 * 20]
    assert store.asked[0, :, 1].tolist() == [14, 2 * 22 - 20]
    assert store.held() == [14, 22]


def test_a_layer_that_the_calibration_does_not_know_follows_the_line():
    store = teach(Store(forecast=Fitted()))
    store.extended.layers = {LAYER: "another"}
    assert store.patch(0, 14) == [14, 26]


def test_nothing_is_carried_into_the_next_request(taught):
    taught.begin()
    taught.full(1, 2)
    taught.skip()
    assert taught.patch(0, 3) == [3, 2]


@pytest.mark.parametrize("settings", [{"layers": ()}, {"bounds": (0, 2)}])
def test_layers_that_are_never_skipped_and_single_patches_cost_nothing(settings):
    store = Store(**settings)
    store.full(10, 20)
    store.patch(0, 11)
    assert store.extended.bytes_held() == 0


def test_calls_outside_the_steps_go_straight_through():
    store = Store()
    assert store._ask(1, 2) == [1, 2]
    assert store.extended.bytes_held() == 0


def test_bytes_of_the_rows_before_the_stored_ones(taught):
    assert taught.extended.bytes_held() == 2 * 2 * 4
    taught.extended.clear()
    assert taught.extended.bytes_held() == 0


def test_rows_of_a_patch_include_those_of_ulysses_peers():
    assert spans_of(3, [0, 2, 3]) == [(0, 2), (2, 3)]
    assert spans_of(6, [0, 2, 3]) == [(0, 4), (4, 6)]
