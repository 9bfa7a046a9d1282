"""Put xDiT behind one call: load a pipeline on all ranks, generate images for prompts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import video
from fastcache_xdit.host.xdit.loading import XditOptions, load_pipeline

BINNED_SAMPLE_SIZES = (32, 64, 128)  # the only ones for which diffusers' PixArt has tables of aspect ratios


@dataclass(frozen=True)
class Request:
    """One image to generate.

    Attributes:
        index: numbers it over the whole job.
        prompt: the text.
        seed: of its start noise.
        files: what the call gets beside its text, such as an image to edit, by argument.
    """

    index: int
    prompt: str
    seed: int
    files: Mapping[str, Any] = field(default_factory=dict)


Batch = tuple[Request, ...]  # generated together


class Engine:
    """An xDiT pipeline on all ranks of the job; arguments and errors are those of `load_pipeline`.

    `fps` is for the clips of a video pipeline; None for what they are meant for.
    """

    def __init__(
        self, model: str, options: XditOptions, dtype: str, fps: int | None = None, kind: str | None = None
    ) -> None:
        self.pipe = load_pipeline(model, options, dtype, kind)
        _tell_mistakes(getattr(self.pipe, "module", self.pipe))
        self.is_video = video.is_video(self.pipe)
        self.fps = (fps or video.usual_fps(self.pipe)) if self.is_video else 0
        self.replicas = options.data_parallel_degree
        parameters = inspect.signature(type(self.pipe).__call__).parameters
        self.accepts = set(parameters)
        guided = {"guidance_scale", "true_cfg_scale"} <= self.accepts and parameters["guidance_scale"].default is None
        self._renamed = {"guidance_scale": "true_cfg_scale"} if guided else {}  # as xDiT's runner does for Qwen-Image

    def arguments(self, batch: Batch, **call: Any) -> dict[str, Any]:
        """Return the arguments of the pipeline call that generates a batch; those that it does not take are left out.

        Under data parallelism the seeds are those of this rank's part.
        """
        own = self._own(batch)
        arguments = {"use_resolution_binning": self._binned(), "output_type": "pil", **call}
        given = {self._renamed.get(name, name): value for name, value in arguments.items() if value is not None}
        arguments = {name: value for name, value in given.items() if name in self.accepts}
        prompts = [request.prompt for request in (own if self.is_video else self._padded(batch))]
        seeds = [torch.Generator("cpu").manual_seed(request.seed) for request in own]
        files = {name: [request.files[name] for request in own] for name in own[0].files}
        return {**arguments, **files, "prompt": prompts, "generator": seeds}

    def generate(self, batch: Batch, **call: Any) -> dict[int, Any]:
        """Run one batch; return {index: PIL image, or `Clip`} on the rank of each replica that holds them, else {}.

        Every rank must call it with the same batch. With an `output_type` of tensors, these instead.
        """
        indices = [request.index for request in self._own(batch)]
        output = self.pipe(**self.arguments(batch, **call))
        if self.is_video:
            own = video.clips(output.frames, self.fps) if video.first_of_replica() else []
            return dict(zip(indices, own, strict=False))
        return dict(zip(indices, output.images, strict=False)) if output is not None else {}

    def _binned(self) -> bool:
        config = getattr(getattr(self.pipe, "transformer", None), "config", None)
        return getattr(config, "sample_size", None) in BINNED_SAMPLE_SIZES

    def _padded(self, batch: Batch) -> Batch:
        """A batch that splits evenly over data-parallel replicas: the last request is repeated."""
        return batch + batch[-1:] * (-len(batch) % self.replicas)

    def _own(self, batch: Batch) -> Batch:
        """This replica's part of a batch; xDiT gives out contiguous chunks in replica order."""
        if self.replicas == 1:
            return batch
        from xfuser.core.distributed import get_data_parallel_rank

        padded = self._padded(batch)
        size = len(padded) // self.replicas
        return padded[get_data_parallel_rank() * size :][:size]


def _tell_mistakes(pipe: Any) -> None:
    """Have the pipeline's own check of a call, such as for sizes, raise a UsageError where it raises a ValueError."""
    check = pipe.check_inputs

    @functools.wraps(check)
    def check_inputs(*args: Any, **kwargs: Any) -> None:
        try:
            check(*args, **kwargs)
        except ValueError as error:
            raise UsageError(str(error)) from None

    pipe.check_inputs = check_inputs


def batches(prompts: Sequence[str], size: int, seed: int) -> list[Batch]:
    """Split prompts into batches; prompt i has seed `seed + i`, whatever the batch size."""
    requests = tuple(Request(index, prompt, seed + index) for index, prompt in enumerate(prompts))
    return [requests[start : start + size] for start in range(0, len(requests), size)]
