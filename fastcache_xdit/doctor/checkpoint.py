"""Looks at a model on disk, the layouts that it can run in here, and its calibration files. No weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.doctor.finding import Finding, problem, tried
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.identity import saved_identity
from fastcache_xdit.host.xdit import checkpoint
from fastcache_xdit.models.catalogue import known_models

NAMES = {
    "ulysses_degree": "ulysses",
    "ring_degree": "ring",
    "pipefusion_parallel_degree": "pipefusion",
    "tensor_parallel_degree": "tensor",
    "cfg_degree": "cfg",
    "data_parallel_degree": "data",
}


def examine(name: str, folder: Path, ranks: int, calibrations: Sequence[Path]) -> Iterator[Finding]:
    """The model called `name`, whose pipeline is in `folder` if it is on this machine."""
    found = tried("model", partial(model, name, folder), "give the folder of a whole diffusers pipeline")
    yield found
    if not found.problem:
        yield layouts(folder, ranks)
        yield from calibrated(calibrations, folder)


def on_disk(name: str) -> Path:
    """Where a folder or hub id is: the hub's cache for one that was downloaded, `name` itself for one that was not."""
    try:
        return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return Path(name)


def model(name: str, folder: Path) -> Finding:
    """Whether the model is here, and FastCache knows its transformer."""
    if not folder.is_dir():
        return Finding("model", f"{name} is not on this machine", f"it is downloaded at first use: hf download {name}")
    kind = checkpoint.transformer_class(folder)
    if kind in known_models():
        return Finding("model", f"{name}: {kind}, which FastCache knows")
    return Finding("model", f"{name}: {kind}", f"it runs uncached; FastCache knows {', '.join(known_models())}")


def layouts(folder: Path, ranks: int) -> Finding:
    """How far each kind of parallelism goes with this many ranks."""
    found = checkpoint.possible_layouts(ranks, folder if folder.is_dir() else None)
    if not found:
        return problem("layouts", f"none for {ranks} ranks", "start fewer ranks")
    largest = {name: max(each.degrees[degree] for each in found) for degree, name in NAMES.items()}
    reach = ", ".join(f"{name} {degree}" for name, degree in largest.items() if degree > 1)
    return Finding("layouts", f"{ranks} ranks in {len(found)} layouts, at most {reach}" if reach else "1 rank")


def calibrated(paths: Sequence[Path], folder: Path) -> list[Finding]:
    """What is wrong with files; one line where nothing is."""
    looked = [tried("calibration", partial(calibration, path, folder), "calibrate again") for path in paths]
    wrong = [each for each in looked if each.advice]
    if wrong or len(looked) < 2:
        return wrong or looked
    return [Finding("calibration", f"{len(looked)} files, whole and made for this model")]


def calibration(path: Path, folder: Path) -> Finding:
    """Whether a file is whole, and was made for this model and scheduler (weights are compared when it is used)."""
    try:
        found = Calibration.load(path)
        if folder.is_dir():
            found.check(saved_identity(folder), allow_adapters=True)
    except UsageError as error:
        return problem("calibration", error.problem, error.advice or "give a file that fastcache-xdit calibrate wrote")
    made_for = "this model" if folder.is_dir() else f"a {found.identity['model']}"
    return Finding("calibration", f"{path.name} is whole and made for {made_for}")
