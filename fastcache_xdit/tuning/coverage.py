"""What a calibration shall serve, and on how many prompts it can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastcache_xdit.errors import UsageError
from fastcache_xdit.segments.segment import Block, Segment, segments_of

HELD_OUT_EVERY = 3  # batches: the last of each so many judges the fits of the others


@dataclass(frozen=True)
class Coverage:
    """What a calibration shall serve.

    Attributes:
        leads: numbers of lead blocks.
        stages: PipeFusion degrees whose stages skip each for itself; where they skip together, they are served by what
            serves one process.
        granularity: beside `step`.
        groups: of `granularity: group`.
        maps: whole matrices for `affine`, which takes [D, D] sums for each segment.
    """

    leads: tuple[int, ...] = (0, 1)
    stages: tuple[int, ...] = ()
    granularity: str = "step"
    groups: int = 4
    maps: bool = False

    def segments(self, blocks: Sequence[Block]) -> list[Segment]:
        """Return every segment to calibrate, each once."""
        stacks = [blocks[first : last + 1] for first, last in spans(len(blocks), self.leads, self.stages)]
        segments = [Segment(0, tuple(stack)) for stack in stacks]
        segments += [segment for stack in stacks for segment in segments_of(stack, self.granularity, self.groups)]
        return list({segment.key: segment for segment in segments}.values())


def spans(count: int, leads: Sequence[int], stages: Sequence[int]) -> list[tuple[int, int]]:
    """Return (first, last) block of what `granularity: step` skips, by lead blocks, of the whole and of each stage.

    xDiT gives each of n PipeFusion stages ceil(count / n) blocks.
    """
    ends = set()
    for number in {1, *stages}:
        size = -(-count // number)
        starts = [(start, min(start + size, count) - 1) for start in range(0, count, size)]
        ends |= {(max(start, lead), last) for lead in leads for start, last in starts}
    return sorted(span for span in ends if span[0] <= span[1])


def check_enough(prompts: int, batch_size: int) -> None:
    """Refuse so few prompts that no whole batch would be held out to judge the fits.

    Raises:
        UsageError: says how many are needed.
    """
    needed = HELD_OUT_EVERY * batch_size
    if prompts < needed:
        raise UsageError(
            f"{prompts} prompts in batches of {batch_size} are too few: one batch in {HELD_OUT_EVERY} "
            f"is held out, so give at least {needed} prompts or a smaller --batch_size"
        )


def is_held_out(index: int) -> bool:
    """Return whether a batch judges the fits of the others."""
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
