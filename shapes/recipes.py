"""The recipes of all models, by name."""

from __future__ import annotations

from . import flux, pixart, wan
from .recipe import ModelRecipe

RECIPES: dict[str, ModelRecipe] = {
    "shapes-pixart": pixart.RECIPE,
    "shapes-flux": flux.RECIPE,
    "shapes-video": wan.RECIPE,
}
