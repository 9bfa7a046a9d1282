"""Caches of what attention and MLPs of the blocks return, each with a schedule of its own."""

from __future__ import annotations

import contextlib
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import nn

from fastcache_xdit.bench.peers.papers.calls import CallCounter, around_calls
from fastcache_xdit.bench.peers.papers.forecast import History
from fastcache_xdit.bench.peers.peer import Subject
from fastcache_xdit.host.find import host_of

Kind = Literal["attention", "mlp"]
PATTERNS: dict[Kind, str] = {"attention": r"attn\d?", "mlp": r"ff|ff_context|ffn|proj_mlp|proj_out"}


class Sublayers:
    """Stand in for sublayers, at the steps that a schedule skips.

    Attributes:
        counter: where the running call is.
    """

    def __init__(self, computes: Callable[[Kind, int], bool], history: Callable[[], History]) -> None:
        self.counter = CallCounter(lambda: self._histories.clear())
        self._histories: defaultdict[tuple[str, int], History] = defaultdict(history)
        self._computes = computes

    @contextlib.contextmanager
    def running(self, subject: Subject, scale: Callable[[int], float] = lambda step: 1.0) -> Iterator[None]:
        """Switch it on for the length of a with block.

        Args:
            subject: whose sublayers are cached.
            scale: by which the transformer's output is multiplied at a step.
        """

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output, *others = original(*args, **kwargs)
            return (output * scale(self.counter.step), *others)

        with around_calls(subject, self.counter, call) as undo:
            for name, kind, module in _sublayers(subject):
                undo.wrap(module, "forward", functools.partial(self._forward, name, kind))
            yield

    def _forward(self, name: str, kind: Kind, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        history, step = self._histories[name, self.counter.branch], self.counter.step
        if history.steps and not self._computes(kind, step):
            return history.estimate(step)
        output = original(*args, **kwargs)
        history.keep(step, output)
        return output


def _sublayers(subject: Subject) -> Iterator[tuple[str, Kind, nn.Module]]:
    """Yield the sublayers of all blocks, by name."""
    for block in host_of(subject.pipe).blocks:
        for child, module in block.module.named_children():
            for kind, pattern in PATTERNS.items():
                if re.fullmatch(pattern, child):
                    yield f"{block.name}.{child}", kind, module
