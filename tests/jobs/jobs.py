"""Small jobs for tests of the store: no model, a few bytes in the place of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcache_xdit.jobs.item import Figures, Item, ItemOutcome
from fastcache_xdit.jobs.recipe import Recipe, checked
from fastcache_xdit.jobs.store import Store
from fastcache_xdit.jobs.submit import items_of

CALL = {"width": 64, "height": 64, "num_inference_steps": 4, "guidance_scale": 2.5}
FIGURES = Figures(0.5, 30, 10, 0.75)


def recipe(**changes: Any) -> Recipe:
    """A recipe whose model nobody loads."""
    return Recipe(**{"model": "none/at-all", "dtype": "float32", "seed": 7, "call": CALL, **changes})


def items(lines: list[dict[str, Any]], pixels: int = 8, **changes: Any) -> list[Item]:
    """Items of a job with these lines."""
    return items_of([checked(line) for line in lines], recipe(**changes), pixels)


def store(folder: Path, count: int, **changes: Any) -> Store:
    """A job of `count` items of one shape."""
    return Store.create(folder, recipe(**changes), items([{"prompt": f"prompt {n}"} for n in range(count)], **changes))


def outcomes(taken: Any) -> list[ItemOutcome]:
    """What a model that paints each item's number would return."""
    return [ItemOutcome(item.id, image=str(item.id).encode()) for item in taken]
