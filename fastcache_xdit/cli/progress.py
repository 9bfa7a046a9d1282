"""How far a job is, for those who wait: a line for each stage, and one bar for the whole job, on the first rank."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from fastcache_xdit.host.xdit.engine import Batch
from fastcache_xdit.host.xdit.world import is_first_rank


def stage(text: str) -> None:
    """Say what begins now."""
    if is_first_rank():
        print(f"fastcache: {text}", file=sys.stderr, flush=True)


def progress(batches: Sequence[Batch]) -> Iterator[Batch]:
    """Give one batch after the other, and show how many are done: a bar on a terminal, else a line for each."""
    if is_first_rank() and sys.stderr.isatty():
        yield from tqdm(batches, desc="fastcache", unit="call", dynamic_ncols=True)
        return
    for number, batch in enumerate(batches, start=1):
        yield batch
        stage(f"{number} of {len(batches)} call{'s' * (len(batches) > 1)} done")
