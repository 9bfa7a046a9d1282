"""Report a job on one page: figures, cached beside uncached images, and every decision as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.evaluate.page import data_url, write_page
from fastcache_xdit.evaluate.summary import View, images_of, pace
from fastcache_xdit.evaluate.token_maps import assembled, heat, over
from fastcache_xdit.parallel.ledger import Entry

MOST_IMAGES = 24  # more would make the page too heavy to open
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
        pace=pace,
        layout=_layout(figures["parallel"]),
        pairs=_pairs(figures, prompts, views),
        left_out=max(0, len(prompts) - MOST_IMAGES),
        grids=_grids(views),
        token_maps=_token_maps(views),
    )


def _layout(parallel: dict[str, int]) -> str:
    used = [f"{DEGREE_NAMES[name]} {degree}" for name, degree in parallel.items() if degree > 1]
    return " x ".join(used) or "1 process"


def _pairs(figures: dict[str, Any], prompts: Sequence[str], views: Sequence[View]) -> list[dict[str, Any]]:
    """The page's images with their prompts; `uncached` is None where nothing was compared."""
    cached, uncached = images_of(views, "cached"), images_of(views, "uncached")
    psnr = figures.get("psnr_db_each", [None] * len(cached))
    shown = list(zip(prompts, cached, psnr, strict=True))[:MOST_IMAGES]
    return [
        {
            "prompt": prompt,
            "cached": _data_url(image),
            "uncached": _data_url(uncached[index]) if uncached else None,
            "psnr": value,
        }
        for index, (prompt, image, value) in enumerate(shown)
    ]


def _data_url(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return data_url(buffer.getvalue(), "png")


def _grids(views: Sequence[View]) -> list[dict[str, Any]]:
    """The first request's decisions: one grid for each set of ranks that agree."""
    grids = []
    for rank, view in enumerate(views):
        pages = view.comparison.cached.ledgers
        if view.agreeing[0] == rank and pages:
            grids.append({"ranks": ", ".join(map(str, view.agreeing)), "rows": _rows(pages[0])})
    return grids


def _token_maps(views: Sequence[View]) -> list[dict[str, Any]]:
    """Partial steps of the first image: the picture with what they computed of it, and a heat map of the scores."""
    picture = images_of(views, "cached")[0]
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


def _rows(page: Sequence[Entry]) -> list[dict[str, Any]]:
    """Decisions by segment (and PipeFusion patch, where patches decide), each in step order."""
    steps = 1 + max(entry.step for entry in page)
    rows: dict[str, list[Entry | None]] = {}
    for entry in page:
        name = entry.segment if entry.patch is None else f"{entry.segment}, patch {entry.patch}"
        rows.setdefault(name, [None] * steps)[entry.step] = entry
    return [{"name": name, "cells": cells} for name, cells in rows.items()]
