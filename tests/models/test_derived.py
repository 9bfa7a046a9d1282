"""Every transformer class of diffusers with its blocks skipped: derived from a call, exact, restored, nothing leaks."""

from __future__ import annotations

import pytest
import torch

from fastcache_xdit.models.catalogue import spec_for
from fastcache_xdit.models.tried import all_tried
from tests.models.loop import MASK, STEPS, Loop
from tests.models.table import GRANULARITIES, described, left_out
from tests.models.zoo import ZOO, build


class Counted(Loop):
    """A loop that knows how often the layers of a block ran."""

    def __init__(self, name: str) -> None:
        super().__init__(ZOO[name], build(name))
        self.name = name
        self.runs = 0

    def generate(self, scale: float = 1.0) -> torch.Tensor:
        self.runs = 0
        return super().generate(scale)

    def count(self, block: str) -> int:
        """Count calls of layers inside a block from now on; return how many there are in a step without a cache."""
        for layer in self.model.get_submodule(block).modules():
            if not list(layer.children()):
                layer.register_forward_hook(self._ran)
        self.generate()
        return self.runs // STEPS

    @property
    def last(self) -> str:
        """The name of the last block that can be skipped."""
        spec = spec_for(self.model)
        lists = list(spec.blocks)
        return spec.order[-1] if spec.order else f"{lists[-1]}.{len(self.model.get_submodule(lists[-1])) - 1}"

    def _ran(self, *_) -> None:
        self.runs += 1


@pytest.fixture(scope="module", params=ZOO)
def loop(request):
    return Counted(request.param)


@pytest.fixture(scope="module")
def whole(loop):
    return loop.generate()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_where_nothing_may_be_skipped_every_bit_is_the_same(loop, whole, granularity):
    with loop.cached("1" * STEPS, granularity) as handle:
        assert torch.equal(loop.generate(), whole)
    assert handle.report().counters.approximated.total() == 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_blocks_are_skipped_as_planned(loop, whole, granularity):
    with loop.cached(MASK, granularity) as handle:
        first = loop.generate()
        counters = handle.report().counters
        second, other = loop.generate(), loop.generate(scale=1.1)
        handle.reset()
        alone = loop.generate(scale=1.1)
    computed, skipped = counters.computed[loop.last], counters.approximated[loop.last]
    assert skipped * MASK.count("1") == computed * MASK.count("0") > 0
    assert torch.equal(second, first) and torch.equal(other, alone), "nothing is left of the request before"
    assert 0 < (first - whole).norm() / (whole - loop.start()).norm() < 0.2


def test_skipped_blocks_do_not_run(loop):
    with loop.cached(MASK, "step"):
        loop.generate()  # the first request looks at the model
    in_a_step = loop.count(loop.last)
    with loop.cached(MASK, "step"):
        loop.generate()
        loop.generate()
    assert loop.runs == MASK.count("1") * in_a_step > 0


def test_disabling_restores_it(loop, whole):
    before = {name: set(vars(module)) for name, module in loop.model.named_modules()}
    with loop.cached(MASK, "step"):
        loop.generate()
    assert {name: set(vars(module)) for name, module in loop.model.named_modules()} == before
    assert torch.equal(loop.generate(), whole)


def test_the_table_tells_it(loop):
    with loop.cached(MASK, "step"):
        loop.generate()
    tried = all_tried()[loop.name]
    assert tried.granularities == ("output", *GRANULARITIES) and not tried.why_not
    assert {name: getattr(tried, name) for name in ("partial", "streams", "computed")} == described(loop.model)


def test_the_table_has_every_class():
    assert {name: row.why_not for name, row in all_tried().items()} == {**dict.fromkeys(ZOO, ""), **left_out()}
