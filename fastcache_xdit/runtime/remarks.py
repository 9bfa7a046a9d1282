"""What a cache has to say about requests that it did not do what was asked for in."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)

OUTSIDE = (
    "the transformer is called outside the steps that are known; such calls are computed in full. Where a branch of "
    "guidance takes a call of its own, name it: with handle.branch('uncond'): ..."
)
FOREIGN = (
    "the transformer is called for no request that this cache knows; such calls are computed in full. Requests are "
    "those of the scheduler that the cache was enabled with: enable it on the other pipeline, or anew where "
    "pipe.scheduler was replaced"
)
THREADS = (
    "several threads call the transformer at once; calls of one request are cached, and those of the others computed "
    "in full"
)
UNSEEN = (
    "a call of the pipeline was not cached: its transformer or scheduler is another one than when the cache was "
    "enabled; enable it anew"
)


class Remarks:
    """Lines that are logged once each, and kept for the report."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def make(self, line: str) -> None:
        """Log a line, unless it was made before."""
        if line not in self.lines:
            self.lines.append(line)
            logger.warning("fastcache: %s", line)
