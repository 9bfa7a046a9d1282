"""Where the shipped models are, and how they want to be called."""

from __future__ import annotations

import json
from pathlib import Path

MODELS, _PRESETS = Path(__file__).parent / "models", Path(__file__).parent / "presets"
SHIPPED = ("shapes-pixart", "shapes-flux", "shapes-video")
# Cache configs that ship with a model, by the share of block FLOPs that they were tuned for.
PRESETS = {"quality": 1 / 1.5, "half": 1 / 2, "balanced": 1 / 2.5, "third": 1 / 3, "fast": 1 / 4, "fifth": 1 / 5}


def model_path(name: str) -> Path:
    """Folder of a shipped model, ready for ``from_pretrained``.

    Raises:
        ValueError: no model of that name is shipped.
    """
    if name not in SHIPPED:
        raise ValueError(f"no shipped model is called {name!r}; shipped models: {', '.join(SHIPPED)}")
    return MODELS / name


def generation_defaults(name: str) -> dict[str, float | int | bool]:
    """Keyword arguments that the model's pipeline call needs, as kept in ``generation.json`` next to its weights.

    Raises:
        ValueError: no model of that name is shipped.
    """
    return json.loads((model_path(name) / "generation.json").read_text())


def calibration_path(name: str) -> Path:
    """The shipped calibration of a shipped model.

    Raises:
        ValueError: no model of that name is shipped, or no calibration of it yet.
    """
    path = _PRESETS / model_path(name).name / "calibration.safetensors"
    if not path.is_file():
        raise ValueError(
            f"no calibration of {name} is shipped yet; make one: python -m fastcache_xdit calibrate --model {name}"
        )
    return path


def tuned_configs(name: str) -> dict[float, Path]:
    """Shipped cache configs of a shipped model by their share of block FLOPs, none where none were tuned yet.

    Raises ValueError as `model_path`.
    """
    folder = _PRESETS / model_path(name).name
    paths = {budget: folder / f"{preset}.yaml" for preset, budget in PRESETS.items()}
    return {budget: path for budget, path in paths.items() if path.is_file()}


def shipped_calibrations(name: str) -> list[Path]:
    """The calibration of a shipped model, and what its presets refitted of it; none where none was made yet.

    Raises ValueError as `model_path`.
    """
    return sorted((_PRESETS / model_path(name).name).glob("*.safetensors"))


def calibration_prompts(name: str) -> list[str]:
    """Prompts that a shipped model's calibration and tuning have seen. Raises ValueError as `model_path`."""
    lines = [path.read_text().splitlines() for path in sorted((_PRESETS / model_path(name).name).glob("*prompts.txt"))]
    return [line.strip() for each in lines for line in each if line.strip() and not line.startswith("#")]
