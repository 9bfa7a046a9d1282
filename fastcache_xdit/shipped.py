"""The small trained models of the repository: the one door through which the package reaches the folder `shapes`.

An installed wheel has no such folder. The models' names are known there too, so that asking for one says where it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcache_xdit.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch

SHIPPED = ("shapes-pixart", "shapes-flux", "shapes-video")
IMAGE_SIZE = 128  # pixels along each side of the pictures that they draw and that the classifier takes
REPOSITORY = "https://github.com/fastcache-xdit/fastcache_xdit"
_FOLDER = Path(__file__).resolve().parents[1] / "shapes"


def in_clone() -> bool:
    """Tell whether this package runs from a clone of the repository, which has the small models beside it."""
    return (_FOLDER / "loading.py").is_file()


def model_path(name: str) -> Path:
    """Return the folder of a small model, ready for `from_pretrained`.

    Raises:
        UsageError: this is no clone, or there is no such model; so do all functions below that take a name.
    """
    path: Path = _shapes("loading").model_path(name)
    return path


def generation_defaults(name: str) -> dict[str, Any]:
    """Return the keyword arguments that the model's pipeline call needs."""
    defaults: dict[str, Any] = _shapes("loading").generation_defaults(name)
    return defaults


def calibration_path(name: str) -> Path:
    """Return the model's calibration file."""
    path: Path = _shapes("loading").calibration_path(name)
    return path


def shipped_calibrations(name: str) -> list[Path]:
    """Return the model's calibration file, and those that its presets refitted."""
    paths: list[Path] = _shapes("loading").shipped_calibrations(name)
    return paths


def calibration_prompts(name: str) -> list[str]:
    """Return the prompts that calibration and tuning of the model have seen."""
    prompts: list[str] = _shapes("loading").calibration_prompts(name)
    return prompts


def presets(name: str) -> dict[str, Path]:
    """Return the model's tuned cache configs by their labels, the most careful first."""
    paths: dict[str, Path] = _shapes("loading").presets(name)
    return paths


def tuned_configs(name: str) -> dict[float, Path]:
    """Return the same configs by the share of block FLOPs that they were tuned for."""
    paths: dict[float, Path] = _shapes("loading").tuned_configs(name)
    return paths


def held_out_prompts(name: str, count: int, seed: int) -> list[str]:
    """Return prompts of the model's language that no training has seen, the same for the same seed."""
    prompts: list[str] = _shapes("recipes").RECIPES[name].prompts(count, seed)
    return prompts


def held_out_scenes(count: int, seed: int) -> list[str]:
    """Return different prompts of the image models' language that no training has seen.

    Raises:
        UsageError: this is no clone, or `count` is above 500.
    """
    prompts: list[str] = _shapes("sampling").prompts(count, seed)
    return prompts


def prompt_accuracy(picture: np.ndarray[Any, Any], prompt: str) -> float | None:
    """Return the share of a prompt's attributes that a picture shows; None where nothing here can tell.

    Args:
        picture: uint8 [H, W, 3]; a video's frames side by side.
        prompt: of any model; only those in the small models' language can be checked, and only in a clone.
    """
    score = _shapes("language").check_picture(picture, prompt) if in_clone() else None
    return None if score is None else float(score.accuracy)


def draw(prompt: str, count: int, rng: random.Random) -> torch.Tensor:
    """Draw what a prompt describes `count` times, its objects placed at random; of a video, every frame.

    Returns:
        float32 [N, 3, 128, 128] in -1..1.

    Raises:
        UsageError: this is no clone.
        ValueError: the prompt is not in the small models' language.
    """
    pictures: torch.Tensor = _shapes("shapes").draw_batch(_shapes("language").drawings(prompt, count, rng))
    return pictures


def classifier_features(images: torch.Tensor) -> torch.Tensor:
    """Return the shapes classifier's features [N, F] of images [N, 3, 128, 128] in 0..1, both float32.

    Raises:
        UsageError: this is no clone.
    """
    features: torch.Tensor = _shapes("classifier").shipped_classifier().features(images)
    return features


def _shapes(module: str) -> Any:
    """Import a module of the folder `shapes`, whatever folder this process runs in."""
    if not in_clone():
        names = ", ".join(SHIPPED)
        raise UsageError(
            f"the small models {names} are not part of the installed package",
            f"clone the repository and run this there: git clone {REPOSITORY}",
        )
    if "shapes" not in sys.modules:
        _import_package("shapes", _FOLDER)
    return importlib.import_module(f"shapes.{module}")


def _import_package(name: str, folder: Path) -> None:
    # by its path: a longer sys.path would let every folder of the repository be imported
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
