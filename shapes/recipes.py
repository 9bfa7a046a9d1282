"""The recipes of all shipped models, by name."""

from __future__ import annotations

from . import flux, pixart, wan
from .recipe import Recipe

RECIPES: dict[str, Recipe] = {
    "shapes-pixart": pixart.RECIPE,
    "shapes-flux": flux.RECIPE,
    "shapes-video": wan.RECIPE,
}
