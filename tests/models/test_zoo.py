"""The zoo is whole, and each model of it denoises: its output moves its latents, and follows them and the timestep."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch
from diffusers import ModelMixin
from torch import nn

from tests.models.zoo import LEFT_OUT, ZOO, arguments_at, build, output_of, overlap

ELSEWHERE = ("UVit2DModel", "UniDiffuserModel")  # transformers that diffusers keeps in other places


def is_transformer(kind: object) -> bool:
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        return False
    named = "Transformer" in kind.__name__ or kind.__name__ in ELSEWHERE
    return named or kind.__module__.startswith("diffusers.models.transformers.")


def listed(tensors: torch.Tensor | list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def like(latents: torch.Tensor | list[torch.Tensor], seed: int) -> torch.Tensor | list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(part.shape, generator=generator) for part in listed(latents)]
    return drawn[0] if isinstance(latents, torch.Tensor) else drawn


def change(outputs: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return min(float((a - b).norm() / a.norm()) for a, b in zip(outputs, others, strict=True))


class Model:
    def __init__(self, name: str) -> None:
        self.name, self.entry, self.module = name, ZOO[name], build(name)
        self.latents = self.entry.arguments()[self.entry.latents]

    @torch.no_grad()
    def predict(self, latents=None, fraction: float = 0.5, **options) -> list[torch.Tensor]:
        latents = self.latents if latents is None else latents
        return listed(output_of(self.module(**arguments_at(self.entry, latents, fraction), **options)))


@pytest.fixture(scope="module", params=sorted(ZOO))
def model(request):
    return Model(request.param)


def test_every_transformer_class_is_in_it_or_left_out_for_a_reason():
    exported = {name for name in dir(diffusers) if is_transformer(getattr(diffusers, name, None))}
    known = set(ZOO) | set(LEFT_OUT)
    assert exported - known == set(), "classes without an entry"
    assert known - exported == set(), "entries without a class"
    assert not set(ZOO) & set(LEFT_OUT)
    assert all(LEFT_OUT.values())


def test_it_is_sorted():
    assert list(ZOO) == sorted(ZOO)
    assert list(LEFT_OUT) == sorted(LEFT_OUT)


def test_weights_are_the_same_each_time(model):
    again = build(model.name).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.module.state_dict().items())


def test_it_is_in_eval_mode_and_float32(model):
    assert not model.module.training
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}


def test_forward_is_finite_and_repeats_itself(model):
    first, second = model.predict(), model.predict()
    assert all(part.isfinite().all() for part in first)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_output_is_found_with_and_without_a_dictionary(model):
    if model.name in ("T5FilmDecoder", "UniDiffuserModel"):
        pytest.skip("returns one kind of result only")
    plain, named = model.predict(return_dict=False), model.predict(return_dict=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, named, strict=True))


def test_output_moves_the_latents(model):
    """All of them; the first channels only where variances are predicted too or conditions are joined to them."""
    outputs, latents = model.predict(), listed(model.latents)
    for output, held in zip(outputs, latents, strict=True):
        part, moved = overlap(output, held)
        assert part.shape == moved.shape
        assert part.numel() >= held.numel() / 3
        assert part.norm() > 0.1 * part.numel() ** 0.5


def test_output_follows_the_latents(model):
    assert change(model.predict(), model.predict(like(model.latents, seed=9))) > 0.02


def test_output_follows_the_timestep(model):
    first, middle, last = (model.predict(fraction=fraction) for fraction in (0.0, 0.5, 1.0))
    assert change(first, middle) > 0.005
    assert change(middle, last) > 0.005


def test_timestep_keeps_its_shape_and_type(model):
    entry = model.entry
    given = entry.arguments()[entry.timestep]
    for fraction, value in zip((0.0, 1.0), entry.noise, strict=True):
        moved = arguments_at(entry, model.latents, fraction)[entry.timestep]
        assert (moved.shape, moved.dtype) == (given.shape, given.dtype)
        assert (moved == value).all()


def test_no_block_is_the_identity(model):
    """Each module in a list alters a tensor that it takes, or makes others of it."""
    unchanged, hooks = [], []

    def compare(module, args, kwargs, result, name):
        given = [tensor for tensor in tensors_in([args, list(kwargs.values())])]
        made = list(tensors_in(result))
        if all(any(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3) for b in given) for a in made):
            unchanged.append(name)

    for name, module in model.module.named_modules():
        for index, block in enumerate(module if isinstance(module, nn.ModuleList) else ()):
            if not isinstance(block, nn.Dropout | nn.Identity):
                hook = partial(compare, name=f"{name}.{index}")
                hooks.append(block.register_forward_hook(hook, with_kwargs=True))
    model.predict()
    for hook in hooks:
        hook.remove()
    assert unchanged == []


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
