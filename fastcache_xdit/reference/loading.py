"""Where the shipped models are, and how they want to be called."""

from __future__ import annotations

import json
from pathlib import Path

_MODELS = Path(__file__).parent / "models"
SHIPPED = ("shapes-pixart",)


def model_path(name: str) -> Path:
    """Folder of a shipped model, ready for ``from_pretrained``.

    Raises:
        ValueError: no model of that name is shipped.
    """
    if name not in SHIPPED:
        raise ValueError(f"no shipped model is called {name!r}; shipped models: {', '.join(SHIPPED)}")
    return _MODELS / name


def generation_defaults(name: str) -> dict[str, float | int | bool]:
    """Keyword arguments that the model's pipeline call needs, as kept in ``generation.json`` next to its weights.

    Raises:
        ValueError: no model of that name is shipped.
    """
    return json.loads((model_path(name) / "generation.json").read_text())
