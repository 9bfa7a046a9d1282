"""Writes what the cache does with each transformer class of diffusers: `python -m tests.models.table`."""

from __future__ import annotations

import inspect
import json
import warnings
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

import diffusers
import torch
from torch import nn

from fastcache_xdit.models.catalogue import SPECS, spec_for
from fastcache_xdit.models.spec import ENCODER, BlockSpec
from fastcache_xdit.models.tried import FILE, Tried
from tests.models.loop import MASK, STEPS, Loop
from tests.models.zoo import LEFT_OUT, ZOO, build
from tests.parallel.layouts_tried import passed, refused
from tests.parallel.runner_zoo import REFUSED

GRANULARITIES = ("step", "group", "block")


def row(name: str) -> Tried:
    """Try one class, of which all but xDiT's layouts can be told in one process."""
    loop = Loop(ZOO[name], build(name))
    works = tuple(granularity for granularity in GRANULARITIES if _works(loop, granularity))
    return Tried(granularities=("output", *works), pipelines=_pipelines(name), **described(loop.model))


def described(model: nn.Module) -> dict[str, Any]:
    """What a model's spec says of its blocks."""
    spec = spec_for(model)
    return {
        "partial": bool(spec.blocks) and all(block.attentions for block in spec.blocks.values()),
        "streams": {name: _streams(block) for name, block in spec.blocks.items()},
        "computed": dict(spec.computed),
    }


def _works(loop: Loop, granularity: str) -> bool:
    """Whether nothing changes where all is computed, half of the skips are exact, and disabling restores."""
    whole = loop.generate()
    with loop.cached("1" * STEPS, granularity):
        same = torch.equal(loop.generate(), whole)
    with loop.cached(MASK, granularity) as handle:
        loop.generate()
        counters = handle.report().counters
    skipped, computed = max(counters.approximated.values()), min(counters.computed.values())
    return same and skipped == MASK.count("0") and computed == MASK.count("1") and torch.equal(loop.generate(), whole)


def _streams(block: BlockSpec) -> str:
    return "image and another stream" if ENCODER in block.returns else "image"


def _pipelines(name: str) -> tuple[str, ...]:
    """The pipelines of diffusers whose constructor asks for this class."""
    kinds = {kind: getattr(diffusers, kind) for kind in dir(diffusers) if kind.endswith("Pipeline")}
    return tuple(kind for kind, made in kinds.items() if name in _asked_for(made))


def _asked_for(pipeline: Any) -> set[str]:
    try:
        parameters = inspect.signature(pipeline.__init__).parameters.values()
    except (TypeError, ValueError):  # what needs a package that is not installed
        return set()
    kinds = " ".join(str(parameter.annotation) for parameter in parameters if "transformer" in parameter.name)
    return {word.strip("'\"<>") for part in kinds.split(".") for word in part.replace("|", " ").split()}


def table() -> dict[str, Tried]:
    """Return what was tried of each class; layouts are those of `tests.parallel.layouts_tried`."""
    known = {spec.name for spec in SPECS}
    layouts = passed()
    rows = {name: replace(row(name), layouts=layouts.get(name, ()), refused=refused(name)) for name in ZOO}
    assert known <= rows.keys()
    return dict(sorted({**rows, **{name: Tried(why_not=reason) for name, reason in left_out().items()}}.items()))


def left_out() -> dict[str, str]:
    """Return the classes of diffusers and of xDiT's runner that are not cached, with the reason."""
    return {**LEFT_OUT, **{name: reason for name, reason in REFUSED.items() if ", " not in name}}


def plain(tried: Tried) -> dict[str, Any]:
    """What is written of a row: all that is not empty."""
    return {name: value for name, value in asdict(tried).items() if value}


def main() -> None:
    warnings.simplefilter("ignore")
    versions = {package: version(package).partition("+")[0] for package in ("diffusers", "torch", "xfuser")}
    classes = {name: plain(tried) for name, tried in table().items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in classes.items())
    FILE.write_text(f'{{"versions": {json.dumps(versions)}, "classes": {{\n{lines}\n}}}}\n')
    print(f"{len(ZOO)} classes, and {len(LEFT_OUT)} that are no denoisers -> {FILE}")


if __name__ == "__main__":
    main()
