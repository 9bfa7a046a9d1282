"""Examine a model on disk, the layouts that it can run in here, and its calibration files; load no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from huggingface_hub import snapshot_download

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.approx.identity import check_identity
from fastcache_xdit.doctor.finding import Finding, problem, tried
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.identity import saved_identity
from fastcache_xdit.host.xdit import checkpoint
from fastcache_xdit.host.xdit.hub import INDEX
from fastcache_xdit.models.tried import Tried, all_tried

NAMES = {
    "ulysses_degree": "ulysses",
    "ring_degree": "ring",
    "pipefusion_parallel_degree": "pipefusion",
    "tensor_parallel_degree": "tensor",
    "cfg_degree": "cfg",
    "data_parallel_degree": "data",
}


def examine(name: str, folder: Path, ranks: int, calibrations: Sequence[Path]) -> Iterator[Finding]:
    """Examine the model called `name`, whose pipeline is in `folder` if it is on this machine.

    Layouts are those of `ranks` ranks.
    """
    finding = tried("model", partial(model, name, folder), "give the folder of a whole diffusers pipeline")
    yield finding
    if not finding.problem:
        if folder.is_dir():
            yield from blocks(folder)
        yield layouts(folder, ranks)
        yield from calibrated(calibrations, folder)


def on_disk(name: str) -> Path:
    """Find a folder, or a hub id in the hub's cache; return `name` itself for one that was never downloaded whole."""
    if Path(name).is_dir():
        return Path(name)
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return Path(name)
    return folder if (folder / INDEX).is_file() else Path(name)


def model(name: str, folder: Path) -> Finding:
    """Tell whether the model is here, and what of the cache works with its transformer."""
    if not folder.is_dir():
        place = str(folder)  # its id on the hub
        called = name if name == place else f"{name} ({place})"
        return Finding(
            "model", f"{called} is not on this machine", f"it is downloaded at first use: hf download {place}"
        )
    kind = checkpoint.transformer_class(folder)
    if kind not in (tried := all_tried()):
        return Finding("model", f"{name}: {kind}, which was not tried; its blocks are found out in its first call")
    if reason := tried[kind].why_not:
        return Finding("model", f"{name}: {kind}", f"it runs uncached: {reason}")
    return Finding("model", f"{name}: {kind}, which is cached by {', '.join(tried[kind].granularities)}")


def blocks(folder: Path) -> Iterator[Finding]:
    """Tell what runs through the blocks of a transformer that was tried, and which are always computed."""
    row = all_tried().get(checkpoint.transformer_class(folder), Tried())
    lists = [f"{name}: {streams}" for name, streams in row.streams.items()]
    lists += [f"{name}: always computed, because {reason}" for name, reason in row.computed.items()]
    if lists:
        yield Finding("blocks", "\n".join(lists))


def layouts(folder: Path, ranks: int) -> Finding:
    """Tell how far each kind of parallelism goes with so many ranks."""
    possible = checkpoint.possible_layouts(ranks, folder if folder.is_dir() else None)
    if not possible:
        return problem("layouts", f"none for {ranks} ranks", "start fewer ranks")
    largest = {name: max(layout.degrees[degree] for layout in possible) for degree, name in NAMES.items()}
    reach = ", ".join(f"{name} {degree}" for name, degree in largest.items() if degree > 1)
    return Finding("layouts", f"{ranks} ranks in {len(possible)} layouts, at most {reach}" if reach else "1 rank")


def calibrated(paths: Sequence[Path], folder: Path) -> list[Finding]:
    """Tell what is wrong with calibration files, in one finding where nothing is."""
    findings = [tried("calibration", partial(calibration, path, folder), "calibrate again") for path in paths]
    wrong = [finding for finding in findings if finding.advice]
    if wrong or len(findings) < 2:
        return wrong or findings
    return [Finding("calibration", f"{len(findings)} files, whole and made for this model")]


def calibration(path: Path, folder: Path) -> Finding:
    """Tell whether a file is whole and was made for this model and scheduler; weights are compared when it is used."""
    try:
        loaded = Calibration.load(path)
        if folder.is_dir():
            check_identity(loaded.identity, saved_identity(folder), allow_adapters=True)
    except UsageError as error:
        return problem("calibration", error.problem, error.advice or "give a file that fastcache-xdit calibrate wrote")
    made_for = "this model" if folder.is_dir() else f"a {loaded.identity['model']}"
    return Finding("calibration", f"{path.name} is whole and made for {made_for}")
