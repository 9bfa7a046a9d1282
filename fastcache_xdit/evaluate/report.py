"""Report a job on one page: figures, cached beside uncached images, and every decision as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastcache_xdit.clips import Clip, frames_of
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.evaluate.closing import noun, pace
from fastcache_xdit.evaluate.decisions import first_request, requests
from fastcache_xdit.evaluate.page import data_url, write_page
from fastcache_xdit.evaluate.summary import View, images_in_full, images_of
from fastcache_xdit.evaluate.token_maps import assembled, heat, over
from fastcache_xdit.options import meanings

MOST_IMAGES, MOST_CLIPS = 24, 8  # more would make the page too heavy to open
DEGREE_NAMES = {
    "ulysses_degree": "Ulysses",
    "ring_degree": "ring",
    "pipefusion_parallel_degree": "PipeFusion",
    "cfg_degree": "CFG",
    "tensor_parallel_degree": "tensor",
    "data_parallel_degree": "data",
}


def write_report(path: Path, figures: dict[str, Any], prompts: Sequence[str], views: Sequence[View]) -> None:
    """Write the page; it needs no other file and no network."""
    write_page(
        path,
        "report.html",
        figures=figures,
        noun=noun,
        pace=pace,
        layout=_layout(figures["parallel"]),
        pairs=(pairs := _pairs(figures, prompts, views)),
        left_out=len(prompts) - len(pairs),
        requests=requests(views, figures),
        grids=first_request(views),
        token_maps=_token_maps(views),
        settings=_settings(figures.get("cache_config") or {}),
    )


def _layout(parallel: dict[str, int]) -> str:
    used = [f"{DEGREE_NAMES[name]} {degree}" for name, degree in parallel.items() if degree > 1]
    return " x ".join(used) or "1 process"


def _pairs(figures: dict[str, Any], prompts: Sequence[str], views: Sequence[View]) -> list[dict[str, Any]]:
    """The page's images or clips with their prompts; `uncached` is None where nothing was compared."""
    cached, uncached, in_full = images_of(views, "cached"), images_of(views, "uncached"), images_in_full(views)
    psnr = figures.get("psnr_db_each", [None] * len(cached))
    frames = figures.get("frames", {}).get("each", [None] * len(cached))
    most = MOST_CLIPS if "clips" in figures else MOST_IMAGES
    shown = list(zip(prompts, cached, psnr, frames, strict=True))[:most]
    return [
        {
            "prompt": prompt,
            "cached": _data_url(image),
            "uncached": _data_url(uncached[index]) if uncached else None,
            "psnr": value,
            "start": _start(image),
            "worst_frame": each["psnr_db"]["min"] if each else None,
            "in_full": index in in_full,
        }
        for index, (prompt, image, value, each) in enumerate(shown)
    ]


def _start(image: Any) -> int:
    """Return where the slider starts, in percent: over a part of the picture that is not background."""
    if isinstance(image, Clip):
        return 50
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    seen = np.abs(pixels - np.median(pixels, axis=(0, 1))).sum(axis=(0, 2))  # by column
    width = max(len(seen) // 8, 1)
    smooth = np.convolve(seen, np.ones(width) / width, mode="same")
    return int(100 * (smooth.argmax() + 0.5) / len(smooth)) if smooth.any() else 50


def _settings(config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the cache's options with what each means: those that differ from the defaults, and the others."""
    rows: dict[str, list[dict[str, Any]]] = {"changed": [], "usual": []}
    meaning = meanings(FastCacheConfig)
    for name, value in config.items():
        default = FastCacheConfig.model_fields[name].default
        row = {"name": name, "value": value, "default": default, "meaning": meaning[name]}
        rows["usual" if value == default else "changed"].append(row)
    return rows


def _data_url(image: Any) -> str:
    if isinstance(image, Clip):
        return data_url(image.mp4(), "video/mp4")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_url(buffer.getvalue(), "image/png")


def _token_maps(views: Sequence[View]) -> list[dict[str, Any]]:
    """Partial steps of the first image: the picture with what they computed of it, and a heat map of the scores."""
    picture = frames_of(images_of(views, "cached")[0])[0]
    shards = [views[rank].comparison.cached.tokens for rank in views[0].shards]
    maps = assembled(shards, picture.height, picture.width)
    return [
        {
            "step": step_map.step,
            "share": step_map.kept.mean(),
            "kept": _data_url(over(picture, step_map.kept)),
            "scores": _data_url(heat(step_map.scores, picture.size)),
        }
        for step_map in maps
    ]
