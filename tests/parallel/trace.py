"""What hangs on the objects that the cache may touch, to see whether it left anything there."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any


def names(pipe: Any) -> dict[str, Any]:
    """Every attribute of the pipeline's modules and scheduler, of xDiT's modules and of the classes in them."""
    return {f"{owner}.{name}": value for owner, held in _owners(pipe) for name, value in vars(held).items()}


def differing(before: dict[str, Any], pipe: Any) -> list[str]:
    """Names that came, went, or stand for another function; plain values change whenever a request runs."""
    now = names(pipe)
    # what pickle and copy remember of a class stays there
    changed = [name for name in before.keys() ^ now.keys() if not name.endswith(".__slotnames__")]
    return changed + [name for name in before.keys() & now.keys() if _replaced(before[name], now[name])]


def _replaced(old: Any, new: Any) -> bool:
    return old is not new and (callable(old) or callable(new))


def _owners(pipe: Any) -> Iterator[tuple[str, Any]]:
    from yunchang.globals import PROCESS_GROUP

    yield "groups", PROCESS_GROUP
    yield "pipe", pipe
    for part in (pipe.scheduler, getattr(pipe.scheduler, "module", pipe.scheduler)):
        yield f"scheduler {type(part).__name__}", part
    for name, module in pipe.transformer.named_modules():
        yield f"transformer {name}", module
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "xfuser":
            yield name, module
            yield from ((f"{name}.{kind.__name__}", kind) for kind in vars(module).values() if inspect.isclass(kind))
