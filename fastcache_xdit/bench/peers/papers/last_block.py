"""Caches of the last block's output: at a skipped step no block runs, and the layers behind them see an estimate."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastcache_xdit.bench.peers.papers.calls import CallCounter, around_calls
from fastcache_xdit.bench.peers.papers.forecast import History
from fastcache_xdit.bench.peers.peer import Subject
from fastcache_xdit.host.find import host_of
from fastcache_xdit.segments.segment import Block


class LastBlock:
    """Stand in for all blocks at the skipped steps of a mask.

    Attributes:
        histories: of the running request, by branch; image tokens [B, N, D] behind the last block.
    """

    def __init__(self, mask: str, history: Callable[[], History]) -> None:
        self.histories: defaultdict[int, History] = defaultdict(history)
        self._mask = mask
        self._counter = CallCounter(self.histories.clear)
        self._estimate: torch.Tensor | None = None  # at a skipped step

    @contextlib.contextmanager
    def running(self, subject: Subject) -> Iterator[None]:
        """Switch it on for the length of a with block."""
        blocks = host_of(subject.pipe).blocks
        with around_calls(subject, self._counter, self._call) as undo:
            for block in blocks:
                undo.wrap(block.module, "forward", self._block(block, is_last=block is blocks[-1]))
            yield

    def _call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        is_computed = self._mask[self._counter.step] == "1"
        self._estimate = None if is_computed else self._history.estimate(self._counter.step)
        return original(*args, **kwargs)

    @property
    def _history(self) -> History:
        return self.histories[self._counter.branch]

    def _block(self, block: Block, is_last: bool) -> Callable[..., Any]:
        read = block.spec.reader(inspect.signature(block.module.forward))

        def forward(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self._estimate is None:
                output = original(*args, **kwargs)
                if is_last:
                    self._history.keep(self._counter.step, block.spec.unpack(output).hidden_states)
                return output
            entered = read(args, kwargs)
            return block.spec.pack(entered._replace(hidden_states=self._estimate) if is_last else entered)

        return forward
