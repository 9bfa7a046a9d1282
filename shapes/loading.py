"""Where the shipped models are, and how they want to be called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.shipped import SHIPPED

MODELS, _PRESETS = Path(__file__).parent / "models", Path(__file__).parent / "presets"
# Labels of the cache configs that ship with a model, and the shares of block FLOPs that they were tuned for.
PRESETS = {"quality": 1 / 1.5, "half": 1 / 2, "balanced": 1 / 2.5, "third": 1 / 3, "fast": 1 / 4, "fifth": 1 / 5}


def model_path(name: str) -> Path:
    """Return the folder of a shipped model, ready for `from_pretrained`.

    Raises:
        UsageError: no model of that name is shipped; so do all functions below.
    """
    if name not in SHIPPED:
        raise UsageError(f"no shipped model is called {name!r}", f"shipped models: {', '.join(SHIPPED)}")
    return MODELS / name


def generation_defaults(name: str) -> dict[str, Any]:
    """Return the keyword arguments that the model's pipeline call needs, from `generation.json` beside its weights."""
    return json.loads((model_path(name) / "generation.json").read_text())


def calibration_path(name: str) -> Path:
    """Return the calibration file of a shipped model.

    Raises:
        UsageError: also where the model has no calibration yet.
    """
    path = _presets_of(name) / "calibration.safetensors"
    if not path.is_file():
        make = f"make one: python -m fastcache_xdit calibrate --model {name}"
        raise UsageError(f"no calibration of {name} is shipped yet", make)
    return path


def shipped_calibrations(name: str) -> list[Path]:
    """Return the calibration file of a shipped model and those that its presets refitted; none before it has one."""
    return sorted(_presets_of(name).glob("*.safetensors"))


def calibration_prompts(name: str) -> list[str]:
    """Return the prompts that calibration and tuning of a shipped model have seen."""
    files = sorted(_presets_of(name).glob("*prompts.txt"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def presets(name: str) -> dict[str, Path]:
    """Return the cache configs of a shipped model by their labels, in the order of `PRESETS`."""
    paths = {label: _presets_of(name) / f"{label}.yaml" for label in PRESETS}
    return {label: path for label, path in paths.items() if path.is_file()}


def tuned_configs(name: str) -> dict[float, Path]:
    """Return the cache configs of a shipped model by the share of block FLOPs that they were tuned for."""
    return {PRESETS[label]: path for label, path in presets(name).items()}


def _presets_of(name: str) -> Path:
    return _PRESETS / model_path(name).name
