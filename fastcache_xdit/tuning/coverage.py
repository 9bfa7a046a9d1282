"""The segments that a calibration covers, and the number of prompts that it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastcache_xdit.errors import UsageError
from fastcache_xdit.segments.segment import Block, Segment, segments_of

LEAST_STEPS = 6  # that fits can be judged on, every other one being computed
UNCALIBRATED = ("pipefusion_parallel_degree", "tensor_parallel_degree")  # layouts that calibrations only serve
HELD_OUT_EVERY = 3  # of every so many batches, the last judges the fits of the others


@dataclass(frozen=True)
class Coverage:
    """The configs that a calibration can be used with.

    Attributes:
        leads: numbers of lead blocks.
        stages: PipeFusion degrees whose stages decide separately; stages that skip together need no segments of their
            own.
        granularity: another granularity beside `step`.
        groups: number of groups with `granularity: group`.
        maps: whether to fit full matrices for `affine`, which takes [D, D] sums for each segment.
    """

    leads: tuple[int, ...] = (0, 1)
    stages: tuple[int, ...] = ()
    granularity: str = "step"
    groups: int = 4
    maps: bool = False

    def segments(self, blocks: Sequence[Block]) -> list[Segment]:
        """Return the segments to calibrate, without duplicates.

        Raises:
            UsageError: the model has too few blocks for this many lead blocks or stages.
        """
        if max(self.leads) >= len(blocks) or max(self.stages, default=1) > len(blocks):
            raise UsageError(
                f"lead_blocks={max(self.leads)}, stages={list(self.stages)} do not fit {len(blocks)} blocks",
                f"set lead_blocks to at most {len(blocks) - 1} and stages to at most {len(blocks)}",
            )
        stacks = [blocks[first : last + 1] for first, last in spans(len(blocks), self.leads, self.stages)]
        segments = [Segment(0, tuple(stack)) for stack in stacks]
        segments += [segment for stack in stacks for segment in segments_of(stack, self.granularity, self.groups)]
        return list({segment.key: segment for segment in segments}.values())


def spans(count: int, leads: Sequence[int], stages: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last block of every segment with `granularity: step`, of the model and of each stage.

    xDiT gives each of n PipeFusion stages ceil(count / n) blocks.

    Args:
        count: number of blocks.
        leads: numbers of lead blocks.
        stages: PipeFusion degrees.
    """
    ends = set()
    for number in {1, *stages}:
        size = -(-count // number)
        starts = [(start, min(start + size, count) - 1) for start in range(0, count, size)]
        ends |= {(max(start, lead), last) for lead in leads for start, last in starts}
    return sorted(span for span in ends if span[0] <= span[1])


def check_enough(prompts: int, batch_size: int) -> None:
    """Refuse too few prompts to hold out a full batch.

    Raises:
        UsageError: there are too few; says how many are needed.
    """
    needed = HELD_OUT_EVERY * batch_size
    if prompts < needed:
        raise UsageError(
            f"{prompts} prompts in batches of {batch_size} are too few: one batch in {HELD_OUT_EVERY} "
            f"is held out, so give at least {needed} prompts or a smaller --batch_size"
        )


def is_held_out(index: int) -> bool:
    """Return whether this batch is held out to judge the fits of the others."""
    return index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
