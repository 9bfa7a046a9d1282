"""The caches of diffusers' hooks."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.bench.peers.lending import LENT, enabled, step_of, timestep_of
from fastcache_xdit.bench.peers.peer import Apply, Peer, Setting, Site

SUBLAYERS = r".*blocks\.\d+\.(attn\d?|ff|ff_context|ffn)"  # attention and MLP outputs, as TaylorSeer's paper caches


@contextlib.contextmanager
def _first_block(site: Site, threshold: float) -> Iterator[dict[str, Any]]:
    from diffusers import FirstBlockCacheConfig

    with enabled(site, FirstBlockCacheConfig(threshold=threshold)) as changes:
        yield changes


@functools.lru_cache(maxsize=1)
def _ratios(site: Site) -> list[float]:
    """MagCache's ratios, which its calibration prints; of several arrays (one per guidance branch) the first."""
    from diffusers import MagCacheConfig

    printed = io.StringIO()
    calibrating = MagCacheConfig(calibrate=True, num_inference_steps=site.steps)
    with enabled(site, calibrating), contextlib.redirect_stdout(printed):
        site.rehearse()
    lines = printed.getvalue().splitlines()
    return next(ast.literal_eval(line) for line in lines if line.startswith("[") and line.endswith("]"))


@contextlib.contextmanager
def _magnitude(site: Site, **knobs: Any) -> Iterator[dict[str, Any]]:
    from diffusers import MagCacheConfig

    config = MagCacheConfig(mag_ratios=_ratios(site), num_inference_steps=site.steps, **knobs)
    with enabled(site, config) as changes:
        yield changes


@contextlib.contextmanager
def _taylorseer(site: Site, **knobs: Any) -> Iterator[dict[str, Any]]:
    import torch
    from diffusers import TaylorSeerCacheConfig

    # Its factors are bfloat16 by default, which would lose what a float32 model knows.
    config = TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **knobs)
    with enabled(site, config) as changes:
        yield changes


@contextlib.contextmanager
def _spectral(site: Site, **knobs: Any) -> Iterator[dict[str, Any]]:
    from diffusers import SeaCacheConfig

    def latents(module: Any, args: Any, kwargs: Any) -> list[Any] | None:
        """(C, T, H, W) of each sample, where states are still pictures; videos and packed tokens have adapters."""
        states = args[0] if args else kwargs.get("hidden_states")
        return [sample[:, None] for sample in states] if states is not None and states.ndim == 4 else None

    lent = None if hasattr(site.pipe.transformer, "enable_cache") else latents
    with enabled(site, SeaCacheConfig(raw_vision_callback=lent, **knobs)) as changes:
        yield changes


@contextlib.contextmanager
def _broadcast(site: Site, spatial: int, cross: int) -> Iterator[dict[str, Any]]:
    from diffusers import PyramidAttentionBroadcastConfig

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=spatial,
        cross_attention_block_skip_range=cross,
        current_timestep_callback=lambda: timestep_of(site),
    )
    with enabled(site, config) as changes:
        yield changes


@contextlib.contextmanager
def _faster(site: Site, attention: int, guidance: int) -> Iterator[dict[str, Any]]:
    from diffusers import FasterCacheConfig

    config = FasterCacheConfig(
        spatial_attention_block_skip_range=attention,
        unconditional_batch_skip_range=guidance,
        attention_weight_callback=lambda _: step_of(site) / site.steps,  # from 0 to 1, as its paper has it
        current_timestep_callback=lambda: timestep_of(site),
        tensor_format="BCHW",
    )
    with enabled(site, config) as changes:
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


INTERVALS = (2, 3, 4, 5, 6)
SWEEPS = {
    "first block": _sweep("threshold", 0.05, 0.1, 0.2, 0.35, 0.6),
    "magnitude": _sweep("threshold max_skip_steps", (0.03, 2), (0.06, 3), (0.12, 3), (0.24, 4), (0.5, 6), (2.0, 9)),
    "taylorseer": _sweep("cache_interval", *INTERVALS, cache_identifiers=[SUBLAYERS]),
    "lite": _sweep("cache_interval", *INTERVALS, use_lite_mode=True),
    "spectral": _sweep("threshold max_consecutive_cached", (0.1, 2), (0.25, 2), (0.5, 3), (1.0, 4), (2.0, 6)),
    "broadcast": _sweep("spatial cross", (2, 2), (2, 4), (4, 6), (6, 9)),
    "faster": _sweep("attention guidance", (2, 3), (2, 5), (4, 5), (6, 9)),
}


def peers() -> list[Peer]:
    """All of them."""
    magnitude, sublayers = f"calibrated on a prompt of its own; {LENT}", f"attention and MLP outputs, order 1; {LENT}"
    return [
        _peer("FirstBlockCache", _first_block, "first block", LENT),
        _peer("MagCache", _magnitude, "magnitude", magnitude),
        _peer("TaylorSeer", _taylorseer, "taylorseer", sublayers),
        _peer("TaylorSeer lite", _taylorseer, "lite", LENT),
        _peer("SeaCache", _spectral, "spectral", LENT),
        _peer("PAB", _broadcast, "broadcast", f"attention only; {LENT}"),
        _peer("FasterCache", _faster, "faster", LENT),
    ]


def _peer(name: str, apply: Apply, sweep: str, note: str) -> Peer:
    return Peer(f"diffusers {name}", "diffusers", apply, SWEEPS[sweep], note=note)
