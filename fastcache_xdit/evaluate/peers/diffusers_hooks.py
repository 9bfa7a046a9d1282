"""The caches of diffusers' hooks.

A transformer class without diffusers' cache mixin (PixArt is one) is lent it, and its calls a cache context with the
step's index and noise level, which its pipeline does not give: every cache gets its best chance.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.evaluate.peers.peer import Peer, Setting, Site
from fastcache_xdit.runtime.patch import Undo

LENT = "diffusers' cache mixin and a cache context are lent to transformers that lack them"
SUBLAYERS = r".*blocks\.\d+\.(attn\d?|ff|ff_context|ffn)"  # attention and MLP outputs, as TaylorSeer's paper caches
ALL_STEPS = (-1, 1001)


@contextlib.contextmanager
def _enabled(site: Site, config: Any) -> Iterator[dict[str, Any]]:
    transformer = site.pipe.transformer
    with _mixin_lent(transformer) as lent:
        transformer.enable_cache(config)
        try:
            with _contexts_given(site) if lent else contextlib.nullcontext():
                yield {}
        finally:
            transformer.disable_cache()


@contextlib.contextmanager
def _mixin_lent(transformer: Any) -> Iterator[bool]:
    from diffusers.models.cache_utils import CacheMixin

    kind = type(transformer)
    if issubclass(kind, CacheMixin):
        yield False
        return
    transformer.__class__ = type(kind.__name__, (kind, CacheMixin), {"__module__": kind.__module__})
    try:
        yield True
    finally:
        transformer.__class__ = kind


@contextlib.contextmanager
def _contexts_given(site: Site) -> Iterator[None]:
    transformer = site.pipe.transformer
    original = transformer.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        index = _step(site)
        sigma = float(site.pipe.scheduler.sigmas[index])
        with transformer.cache_context("both", step_index=index, num_inference_steps=site.steps, sigma=sigma):
            return original(*args, **kwargs)

    with Undo() as undo:
        undo.set(transformer, "forward", forward)
        yield


def _step(site: Site) -> int:
    return site.pipe.scheduler.step_index or 0


def _timestep(site: Site) -> int:
    return int(site.pipe.scheduler.timesteps[_step(site)])


@contextlib.contextmanager
def _first_block(site: Site, threshold: float) -> Iterator[dict[str, Any]]:
    from diffusers import FirstBlockCacheConfig

    with _enabled(site, FirstBlockCacheConfig(threshold=threshold)) as changes:
        yield changes


@functools.lru_cache(maxsize=1)
def _ratios(site: Site) -> list[float]:
    """MagCache's ratios, which its calibration prints; of several arrays (one per guidance branch) the first."""
    from diffusers import MagCacheConfig

    printed = io.StringIO()
    calibrating = MagCacheConfig(calibrate=True, num_inference_steps=site.steps)
    with _enabled(site, calibrating), contextlib.redirect_stdout(printed):
        site.rehearse()
    lines = printed.getvalue().splitlines()
    return next(ast.literal_eval(line) for line in lines if line.startswith("[") and line.endswith("]"))


@contextlib.contextmanager
def _magnitude(site: Site, **knobs: Any) -> Iterator[dict[str, Any]]:
    from diffusers import MagCacheConfig

    config = MagCacheConfig(mag_ratios=_ratios(site), num_inference_steps=site.steps, **knobs)
    with _enabled(site, config) as changes:
        yield changes


@contextlib.contextmanager
def _taylorseer(site: Site, **knobs: Any) -> Iterator[dict[str, Any]]:
    import torch
    from diffusers import TaylorSeerCacheConfig

    # Its factors are bfloat16 by default, which would lose what a float32 model knows.
    config = TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **knobs)
    with _enabled(site, config) as changes:
        yield changes


@contextlib.contextmanager
def _spectral(site: Site, **knobs: Any) -> Iterator[dict[str, Any]]:
    from diffusers import SeaCacheConfig

    def latents(module: Any, args: Any, kwargs: Any) -> list[Any] | None:
        """(C, T, H, W) of each sample, where states are still pictures; videos and packed tokens have adapters."""
        states = args[0] if args else kwargs.get("hidden_states")
        return [sample[:, None] for sample in states] if states is not None and states.ndim == 4 else None

    lent = None if hasattr(site.pipe.transformer, "enable_cache") else latents
    with _enabled(site, SeaCacheConfig(raw_vision_callback=lent, **knobs)) as changes:
        yield changes


@contextlib.contextmanager
def _broadcast(site: Site, spatial: int, cross: int) -> Iterator[dict[str, Any]]:
    from diffusers import PyramidAttentionBroadcastConfig

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=spatial,
        cross_attention_block_skip_range=cross,
        current_timestep_callback=lambda: _timestep(site),
    )
    with _enabled(site, config) as changes:
        yield changes


@contextlib.contextmanager
def _faster(site: Site, attention: int, guidance: int) -> Iterator[dict[str, Any]]:
    from diffusers import FasterCacheConfig

    config = FasterCacheConfig(
        spatial_attention_block_skip_range=attention,
        unconditional_batch_skip_range=guidance,
        attention_weight_callback=lambda _: _step(site) / site.steps,  # from 0 to 1, as its paper has it
        current_timestep_callback=lambda: _timestep(site),
        tensor_format="BCHW",
    )
    with _enabled(site, config) as changes:
        yield changes


def _sweep(words: str, *values: Any, **fixed: Any) -> tuple[Setting, ...]:
    """Settings over a knob, or over several that go together: `_sweep("a b", (1, 2), (3, 4))`."""
    names = words.split()
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return tuple(
        Setting(
            ", ".join(f"{name} {each:g}" for name, each in zip(names, row, strict=True)),
            dict(zip(names, row, strict=True)) | fixed,
        )
        for row in rows
    )


def peers() -> list[Peer]:
    """All of them."""
    magnitude = _sweep(
        "threshold max_skip_steps", (0.03, 2), (0.06, 3), (0.12, 3), (0.24, 4), (0.5, 6), (2.0, 9), retention_ratio=0.2
    )
    intervals = (2, 3, 4, 5, 6)
    return [
        Peer(
            "diffusers FirstBlockCache",
            "diffusers",
            _first_block,
            _sweep("threshold", 0.05, 0.1, 0.2, 0.35, 0.6),
            note=LENT,
        ),
        Peer(
            "diffusers MagCache", "diffusers", _magnitude, magnitude, note="calibrated on a prompt of its own; " + LENT
        ),
        Peer(
            "diffusers TaylorSeer",
            "diffusers",
            _taylorseer,
            _sweep("cache_interval", *intervals, cache_identifiers=[SUBLAYERS]),
            note="attention and MLP outputs, order 1; " + LENT,
        ),
        Peer(
            "diffusers TaylorSeer lite",
            "diffusers",
            _taylorseer,
            _sweep("cache_interval", *intervals, use_lite_mode=True),
            note=LENT,
        ),
        Peer(
            "diffusers SeaCache",
            "diffusers",
            _spectral,
            _sweep("threshold max_consecutive_cached", (0.1, 2), (0.25, 2), (0.5, 3), (1.0, 4), (2.0, 6)),
            note=LENT,
        ),
        Peer(
            "diffusers PAB",
            "diffusers",
            _broadcast,
            _sweep("spatial cross", (2, 2), (2, 4), (4, 6), (6, 9)),
            note="attention only; " + LENT,
        ),
        Peer(
            "diffusers FasterCache",
            "diffusers",
            _faster,
            _sweep("attention guidance", (2, 3), (2, 5), (4, 5), (6, 9)),
            note=LENT,
        ),
    ]
