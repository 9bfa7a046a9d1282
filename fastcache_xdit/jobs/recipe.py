"""What a job asks for: each line of its prompts file, and what all lines have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import write_whole
from fastcache_xdit.options import Options, usage_error

RECIPE = "recipe.json"
LONGEST_PROMPT = 10_000  # characters; far more than any text encoder reads
LARGEST_SIDE = 16_384  # pixels
MOST_FRAMES = 10_000
LEASE = 600.0  # seconds; more than a step, or decoding a picture, takes
MAX_ATTEMPTS = 5  # of an item, each of which ended with a dead process
# By argument of the pipeline's call: the field of a line that wins over it.
FIELDS = {
    "width": "width",
    "height": "height",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "negative_prompt": "negative_prompt",
    "num_frames": "num_frames",
}
REASON_LENGTH = 300  # characters kept of a reason, which may quote what was given


class PromptLine(Options):
    """One image that is asked for; what is left out comes from the job.

    Attributes:
        prompt: the text.
        negative_prompt: what guidance leads away from.
        seed: of the start noise; without one, the job's seed plus the line's place in the file.
        width: in pixels.
        height: in pixels.
        steps: denoising steps.
        guidance: scale of classifier-free, or embedded, guidance.
        image: file of the image to begin from.
        mask: file of an image, white where the other one is painted anew.
        video: file of the clip to begin from.
        control_image: file of the image that a ControlNet follows.
        strength: how far from image or video, up to 1 for all of the steps.
        num_frames: of the clip that is made; with `video`, how many of its frames are taken, all without.
    """

    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    negative_prompt: str | None = Field(None, max_length=LONGEST_PROMPT)
    seed: int | None = Field(None, ge=0, lt=2**63)
    width: int | None = Field(None, ge=8, le=LARGEST_SIDE, multiple_of=8)
    height: int | None = Field(None, ge=8, le=LARGEST_SIDE, multiple_of=8)
    steps: int | None = Field(None, ge=1, le=1000)
    guidance: float | None = Field(None, ge=0, allow_inf_nan=False)
    image: str | None = None
    mask: str | None = None
    video: str | None = None
    control_image: str | None = None
    strength: float | None = Field(None, gt=0, le=1)
    num_frames: int | None = Field(None, ge=1, le=MOST_FRAMES)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise UsageError("must be a text or a number", "write no true or false")
        return value

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _texts(cls, text: str | None) -> str | None:
        if text is not None and "\0" in text:
            raise UsageError("has a NUL character", "remove it")
        return text

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, text: str) -> str:
        if not text.strip():
            raise UsageError("is blank", "write what the image shows")
        return text


class Recipe(Options):
    """What every item of a job has in common, as submitted.

    Attributes:
        model: folder or hub id.
        dtype: of weights and activations.
        seed: seed of the first line; see `PromptLine.seed`.
        batch_size: images that are generated together; which ones is settled at submit.
        call: arguments of every pipeline call, defaults of what lines leave out among them.
        cache: options of FastCache, None for none.
        fps: of clips; None for what the model is meant for.
        pipeline: the diffusers class to load the model as; None for the one that it was saved as.
        engine: xDiT's options as submitted, such as the layout; flags of `run` win over them.
        lease: seconds without progress after which others take a replica's items, and its ranks start again.
    """

    model: str
    dtype: str
    seed: int
    batch_size: int = Field(1, ge=1)
    call: dict[str, Any]
    cache: dict[str, Any] | None = None
    fps: int | None = None
    pipeline: str | None = None
    engine: dict[str, bool | int | float | str | None] = {}
    lease: float = Field(LEASE, gt=0, allow_inf_nan=False)

    @property
    def config(self) -> FastCacheConfig | None:
        """The options of FastCache; None for no cache."""
        return FastCacheConfig.from_dict(self.cache) if self.cache is not None else None

    @property
    def learns(self) -> bool:
        """Whether images follow a plan from what was learnt, which the job then keeps in its folder."""
        config = self.config
        return config is not None and config.test == "plan" and config.calibration is None

    def save(self, folder: Path) -> None:
        """Write `recipe.json`, which every rank reads; the store is for the first ones alone."""
        write_whole(folder / RECIPE, self.model_dump_json(indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> Recipe:
        """Read the recipe of the job in `folder`. Raises UsageError where there is none, or a broken one."""
        if not (folder / RECIPE).is_file():
            raise UsageError(
                f"no job in {folder}", f"make one with: batch submit {folder} --prompts FILE --model MODEL"
            )
        try:
            recipe = cls.model_validate_json((folder / RECIPE).read_bytes())
            _ = recipe.config  # raises what is wrong with it
        except ValidationError as error:
            raise usage_error(error).of(folder / RECIPE) from None
        except UsageError as error:
            raise error.of(folder / RECIPE) from None
        return recipe


def check_limits(call: Mapping[str, Any], seed: int, count: int) -> None:
    """Raise UsageError for arguments of all calls that no line may have, or seeds that do not suffice for `count`."""
    for argument, field in FIELDS.items():
        if (given := call.get(argument)) is None:
            continue
        try:
            PromptLine(prompt="-", **{field: given})
        except ValidationError as error:
            raise usage_error(error).of(f"--{argument}") from None
    if not 0 <= seed <= 2**63 - max(count, 1):
        raise UsageError(f"seed={seed} is not possible for {count} prompts", "seeds go from 0 to 2**63 - 1, one each")


class BadLine(Options):
    """A line that cannot become an image, and why."""

    text: str
    reason: str


def checked(values: dict[str, Any]) -> PromptLine | BadLine:
    """Build a line of these values, or a bad one; empty values count as left out."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    if any(isinstance(value, str) and not _is_utf8(value) for value in given.values()):
        return bad_line(values.get("prompt") or "", "the line is not UTF-8; save the file as UTF-8")
    try:
        return PromptLine(**given)
    except ValidationError as error:
        return bad_line(values.get("prompt") or "", str(usage_error(error)))


def _is_utf8(text: str) -> bool:
    """Whether a text that was read with surrogates for wrong bytes had none."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def bad_line(text: Any, reason: str) -> BadLine:
    """Build a bad line, with as much of its text as can be shown."""
    shown = str(text)[:REASON_LENGTH].encode(errors="replace").decode()
    return BadLine(text=shown, reason=printable(reason))


def printable(reason: str) -> str:
    """Shorten a reason to one line of bounded length that every database and terminal takes."""
    return " ".join(reason.encode(errors="replace").decode().split())[:REASON_LENGTH]
