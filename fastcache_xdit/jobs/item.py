"""One image of a job: what is asked for, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pydantic import Field

from fastcache_xdit.files import checksum
from fastcache_xdit.options import Options


class Item(Options):
    """A row of the store; `id` is its place in the prompts file, from 0.

    Items of one `batch` are generated together, always the same ones, so that an image does not depend on which run
    makes it; a line that was bad at submit has none. `output` and files are relative to the job's folder. `seconds`,
    `computed` and `approximated` (block calls, over the replica's ranks) and `compute_ratio` (share of block work that
    was executed) are those of its batch; `started` and `finished` are seconds since 1970. `recorded` says that it was
    computed in full, to learn from.
    """

    id: int
    batch: int | None = None
    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    image: str | None = None
    mask: str | None = None
    video: str | None = None
    control_image: str | None = None
    strength: float | None = None
    num_frames: int | None = None
    state: str = "pending"
    attempts: int = 0
    owner: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    error: str | None = None
    output: str | None = Field(None, pattern=r"^images/\d{6,}\.(png|mp4)$")
    checksum: str | None = None
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None
    computed: int | None = None
    approximated: int | None = None
    compute_ratio: float | None = None
    recorded: bool = False

    @property
    def shape(self) -> tuple[object, ...]:
        """Return what items of one batch share, because a pipeline call takes one of each."""
        call = (self.width, self.height, self.steps, self.guidance, self.negative_prompt)
        files = (bool(self.image), bool(self.mask), bool(self.control_image))
        alone = self.id if self.video else None  # clips differ in length
        return (*call, self.strength, self.num_frames, *files, alone)


class Figures(NamedTuple):
    """What a batch took: seconds, block calls, and the share of them that was computed; None without a cache."""

    seconds: float | None = None
    computed: int | None = None
    approximated: int | None = None
    compute_ratio: float | None = None


@dataclass(frozen=True)
class ItemOutcome:
    """What became of one item: a file, PNG or, of a clip, mp4; or the reason why there is none."""

    id: int
    image: bytes | None = None
    suffix: str = ".png"
    error: str | None = None

    @property
    def checksum(self) -> str | None:
        """Return the file's checksum; None without a file."""
        return None if self.image is None else checksum(self.image)
