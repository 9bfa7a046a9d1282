"""The caches that diffusers has as hooks."""

from __future__ import annotations

import ast
import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any

from fastcache_xdit.bench.peers.lending import LENT, enabled, step_of, timestep_of
from fastcache_xdit.bench.peers.peer import Apply, Peer, Setting, Subject

SUBLAYERS = r".*blocks\.\d+\.(attn\d?|ff|ff_context|ffn)"  # attention and MLP outputs, as TaylorSeer's paper caches


@contextlib.contextmanager
def _first_block(subject: Subject, threshold: float) -> Iterator[dict[str, Any]]:
    from diffusers import FirstBlockCacheConfig

    with enabled(subject, FirstBlockCacheConfig(threshold=threshold)) as changes:
        yield changes


@functools.lru_cache(maxsize=1)
def _ratios(subject: Subject) -> list[float]:
    """Run MagCache's calibration and read the ratios it prints: the first array, where guidance has two branches."""
    from diffusers import MagCacheConfig

    printed = io.StringIO()
    calibrating = MagCacheConfig(calibrate=True, num_inference_steps=subject.steps)
    with enabled(subject, calibrating), contextlib.redirect_stdout(printed):
        subject.rehearse(0)
    lines = printed.getvalue().splitlines()
    return next(ast.literal_eval(line) for line in lines if line.startswith("[") and line.endswith("]"))


@contextlib.contextmanager
def _magnitude(subject: Subject, **knobs: Any) -> Iterator[dict[str, Any]]:
    from diffusers import MagCacheConfig

    config = MagCacheConfig(mag_ratios=_ratios(subject), num_inference_steps=subject.steps, **knobs)
    with enabled(subject, config) as changes:
        yield changes


@contextlib.contextmanager
def _taylorseer(subject: Subject, **knobs: Any) -> Iterator[dict[str, Any]]:
    import torch
    from diffusers import TaylorSeerCacheConfig

    # Its factors are bfloat16 by default, too coarse for a float32 model.
    config = TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **knobs)
    with enabled(subject, config) as changes:
        yield changes


@contextlib.contextmanager
def _spectral(subject: Subject, **knobs: Any) -> Iterator[dict[str, Any]]:
    from diffusers import SeaCacheConfig

    def latents(module: Any, args: Any, kwargs: Any) -> list[Any] | None:
        """Return each sample as (C, T, H, W) where states are pictures; diffusers adapts videos and packed tokens."""
        states = args[0] if args else kwargs.get("hidden_states")
        return [sample[:, None] for sample in states] if states is not None and states.ndim == 4 else None

    lent = None if hasattr(subject.pipe.transformer, "enable_cache") else latents
    with enabled(subject, SeaCacheConfig(raw_vision_callback=lent, **knobs)) as changes:
        yield changes


@contextlib.contextmanager
def _broadcast(subject: Subject, spatial: int, cross: int) -> Iterator[dict[str, Any]]:
    from diffusers import PyramidAttentionBroadcastConfig

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=spatial,
        cross_attention_block_skip_range=cross,
        current_timestep_callback=lambda: timestep_of(subject),
    )
    with enabled(subject, config) as changes:
        yield changes


@contextlib.contextmanager
def _faster(subject: Subject, attention: int, guidance: int) -> Iterator[dict[str, Any]]:
    from diffusers import FasterCacheConfig

    config = FasterCacheConfig(
        spatial_attention_block_skip_range=attention,
        unconditional_batch_skip_range=guidance,
        attention_weight_callback=lambda _: step_of(subject) / subject.steps,  # from 0 to 1, as its paper has it
        current_timestep_callback=lambda: timestep_of(subject),
        tensor_format="BCHW",
    )
    with enabled(subject, config) as changes:
        yield changes


def _sweep(words: str, *values: Any, **fixed: Any) -> tuple[Setting, ...]:
    """Return settings over one knob, or over several that go together: `_sweep("a b", (1, 2), (3, 4))`."""
    names = words.split()
    rows = [value if isinstance(value, tuple) else (value,) for value in values]
    return tuple(
        Setting(
            ", ".join(f"{name} {value:g}" for name, value in zip(names, row, strict=True)),
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
    """Return all of diffusers' caches."""
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
