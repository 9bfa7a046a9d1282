"""What a watched call tells of the blocks: of copies handed on, and of a rank that holds no token that moves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.errors import UsageError
from fastcache_xdit.models.derive import derive

WIDTH = 8
LATENTS = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.layers(hidden_states)


class Model(nn.Module):
    """Three blocks, and what happens to the states in front of each."""

    def __init__(self, between) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.between = between

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            latents = block(self.between(latents))
        return latents


def derived(between, add_up=lambda flags: flags):
    model = Model(between)
    return derive(model, functools.partial(model.forward, LATENTS), add_up)


def test_a_copy_handed_on_is_no_joint():
    assert derived(torch.clone).joints == derived(lambda states: states).joints == frozenset()


def test_a_change_between_blocks_is_a_joint():
    assert derived(lambda states: states + 1).joints == {"blocks.1", "blocks.2"}


def test_tokens_that_do_not_depend_on_the_latents_are_refused():
    with pytest.raises(UsageError, match="do not depend on the latents"):
        derived(torch.zeros_like)


def test_ranks_take_together_what_one_of_them_sees():
    """This rank holds a part that does not move; another one sees that everything does."""
    spec = derived(torch.zeros_like, torch.ones_like)
    assert list(spec.blocks) == ["blocks"]
    assert spec.joints == {"blocks.1", "blocks.2"}


class Causal(Block):
    def forward(self, hidden_states: torch.Tensor, memory: list[dict]) -> torch.Tensor:
        hidden_states = super().forward(hidden_states)
        memory[0]["keys"] = hidden_states
        return hidden_states


class CausalModel(Model):
    """Its blocks keep keys for the next call, as those of causal video models do."""

    def __init__(self) -> None:
        super().__init__(lambda states: states)
        self.blocks = nn.ModuleList(Causal() for _ in range(3))
        self.memory: list[dict] = [{}]

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            latents = block(latents, self.memory)
        return latents


def test_blocks_that_keep_keys_for_later_calls_are_refused():
    model = CausalModel()
    with pytest.raises(UsageError, match="its blocks write into memory"):
        derive(model, functools.partial(model.forward, LATENTS), lambda flags: flags)


class InPlace(Block):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states += self.layers(hidden_states)
        return hidden_states


def test_blocks_that_overwrite_their_input_are_refused():
    model = Model(lambda states: states)
    model.blocks = nn.ModuleList(InPlace() for _ in range(3))
    with torch.no_grad(), pytest.raises(UsageError, match="its blocks write into hidden_states"):
        derive(model, functools.partial(model.forward, LATENTS.clone()), lambda flags: flags)


class LongSkips(nn.Module):
    """A U-ViT: each block upwards reads what a block downwards returned."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(Block() for _ in range(4))
        self.up = nn.ModuleList(Block() for _ in range(4))
        self.join = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(4))

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        kept = []
        for block in self.down:
            latents = block(latents)
            kept.append(latents)
        for block, join in zip(self.up, self.join, strict=True):
            latents = block(join(torch.cat([latents, kept.pop()], -1)))
        return latents


class Context(Block):
    def forward(self, hidden_states: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states + context.mean(1, keepdim=True))


class TwoTowers(nn.Module):
    """Blocks of a second list read all that the first list returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(Block() for _ in range(4))
        self.second = nn.ModuleList(Context() for _ in range(4))

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        kept, other = [], latents + 1
        for block in self.first:
            other = block(other)
            kept.append(other)
        for block, context in zip(self.second, kept, strict=True):
            latents = block(latents, context)
        return latents


def repeated(model, granularity, grad_mode=torch.no_grad):
    """Return what each step gives where nothing changes from one to the next, and the report."""
    config = FastCacheConfig.scheduled("1101", lead_blocks=0).model_copy(update={"granularity": granularity})
    sigmas = [1.0, 0.8, 0.6, 0.4]
    with grad_mode(), fastcache(model, config, sigmas=sigmas) as handle:
        outputs = [model(LATENTS.clone(), torch.tensor([sigma])).clone() for sigma in sigmas]
        return outputs, handle.report()


@pytest.mark.parametrize("granularity", ["step", "group", "block"])
@pytest.mark.parametrize("kind", [LongSkips, TwoTowers])
def test_blocks_that_others_read_from_afar_are_skipped_alone(kind, granularity):
    torch.manual_seed(0)
    outputs, report = repeated(kind().eval(), granularity)
    assert report.counters.approximated.total() == 8
    torch.testing.assert_close(outputs[2], outputs[1])


class Plain(nn.Module):
    """Six blocks, one after the other."""

    def __init__(self, kind=Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(6))

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        latents = latents + 1
        for block in self.blocks:
            latents = block(latents)
        return latents


@pytest.mark.parametrize("grad_mode", [torch.no_grad, torch.inference_mode])
def test_where_blocks_overwrite_their_input_the_output_is_stood_in_for(grad_mode):
    torch.manual_seed(0)
    model = Plain(InPlace).eval()
    outputs, report = repeated(model, "step", grad_mode)
    assert set(report.counters.approximated) == {"output"}
    torch.testing.assert_close(outputs, repeated(model, "output", grad_mode)[0])


@pytest.mark.parametrize("first", [True, False])
def test_a_block_of_two_lists_is_one_block(first):
    torch.manual_seed(0)
    model = Plain().eval()
    blocks = model.blocks
    if first:
        del model.blocks
    model.early = nn.ModuleList(blocks[:2])
    model.blocks = blocks
    outputs, report = repeated(model, "step")
    assert report.counters.approximated == {f"blocks.{number}": 1 for number in range(6)}
    torch.testing.assert_close(outputs[2], outputs[1])


class Moody(Plain):
    """It runs other blocks from a noise level on."""

    def __init__(self, late: Callable[[nn.ModuleList], Iterable[nn.Module]], until: float) -> None:
        super().__init__()
        self.late = late
        self.until = until

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        for block in self.blocks if timestep > self.until else self.late(self.blocks):
            latents = block(latents)
        return latents


@pytest.mark.parametrize("until", [0.7, 0.5], ids=["from a skipped step on", "from a computed step on"])
@pytest.mark.parametrize("granularity", ["step", "block"])
@pytest.mark.parametrize(
    "late",
    [lambda blocks: blocks[:-1], lambda blocks: blocks[1:], lambda blocks: [*blocks, blocks[0]], reversed],
    ids=["the last is left out", "the first is left out", "one comes twice", "they come in another order"],
)
def test_calls_that_run_other_blocks_are_computed_in_full(late, granularity, until):
    torch.manual_seed(0)
    model = Moody(late, until).eval()
    with torch.no_grad():
        whole = [model(LATENTS, torch.tensor([sigma])) for sigma in (1.0, 0.8, 0.6, 0.4)]
    for _ in range(2):
        outputs, report = repeated(model, granularity)
        first = 2 if until > 0.6 else 3
        torch.testing.assert_close(outputs[first:], whole[first:], rtol=0, atol=0)
        assert report.counters.bypassed_calls == 4 - first
        assert any("ran other blocks than its first call" in line for line in report.remarks)


class Pair(NamedTuple):
    image: torch.Tensor
    text: torch.Tensor


class Named(Block):
    def forward(self, image: torch.Tensor, text: torch.Tensor) -> Pair:
        return Pair(super().forward(image + text), super().forward(text))


class NamedModel(Plain):
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        pair = Pair(latents, latents + 1)
        for block in self.blocks:
            pair = block(pair.image, pair.text)
        return pair.image


def test_named_tuples_stay_named_tuples():
    torch.manual_seed(0)
    outputs, report = repeated(NamedModel(Named).eval(), "step")
    assert report.counters.approximated.total() == 6
    torch.testing.assert_close(outputs[2], outputs[1])


def test_lead_blocks_that_leave_nothing_to_skip_are_refused():
    model, config = Plain(), FastCacheConfig.scheduled("1101", lead_blocks=6)
    refused = pytest.raises(UsageError, match="lead_blocks=6 leaves nothing to skip: Plain has 6 blocks")
    with torch.no_grad(), fastcache(model, config, sigmas=[1.0, 0.8, 0.6, 0.4]), refused:
        model(LATENTS, torch.tensor([1.0]))


class Dicts(Block):
    def forward(self, state: dict) -> dict:
        return {"states": super().forward(state["states"])}


class DictModel(Plain):
    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        state = {"states": latents}
        for block in self.blocks:
            state = block(state)
        return state["states"]


@pytest.mark.parametrize(
    ("model", "words"),
    [(lambda: DictModel(Dicts), "its blocks return dict"), (lambda: NoList(), "looked for in lists")],
)
def test_the_reason_is_named(model, words):
    with pytest.raises(UsageError, match=words):
        derive(made := model(), functools.partial(made.forward, LATENTS, torch.tensor([1.0])), lambda flags: flags)


class NoList(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(Block(), Block())

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return super().forward(latents)
