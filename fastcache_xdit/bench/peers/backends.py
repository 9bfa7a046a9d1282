"""Run requests on a plain diffusers pipeline in one process, or with xDiT on several ranks."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import numpy as np
import torch

from fastcache_xdit.clips import frames_of
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch, Engine
from fastcache_xdit.host.xdit.loading import DTYPES, silence_loading


class Backend(Protocol):
    """One loaded model.

    Attributes:
        pipe: the pipeline that caches change.
        ranks: how many processes take part.
    """

    pipe: Any
    ranks: int

    def generate(self, batch: Batch, call: dict[str, Any]) -> torch.Tensor:
        """Generate pictures [N, 3, H, W] in 0..1, a video's frames one after the other.

        With `output_type: latent` in `call`, latents instead.
        """


class PlainBackend:
    """Run a diffusers pipeline in this process, which is what most caches are made for."""

    ranks = 1

    def __init__(self, folder: str, dtype: str) -> None:
        from diffusers import DiffusionPipeline

        silence_loading()
        self.pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=DTYPES[dtype])
        if torch.cuda.is_available():
            self.pipe.to("cuda")
        self.pipe.set_progress_bar_config(disable=True)
        self._accepts = set(inspect.signature(type(self.pipe).__call__).parameters)

    def generate(self, batch: Batch, call: dict[str, Any]) -> torch.Tensor:
        """Generate as `Backend` says; arguments that the pipeline does not take are left out."""
        call = {name: value for name, value in call.items() if name in self._accepts}
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in batch]
        output = self.pipe(
            prompt=[request.prompt for request in batch], generator=generators, **{"output_type": "np", **call}
        )[0]
        return output.cpu() if isinstance(output, torch.Tensor) else _pictures(output)


class XditBackend:
    """Run xDiT on all ranks that were started."""

    def __init__(self, engine: Engine, ranks: int) -> None:
        self.engine, self.ranks = engine, ranks
        self.pipe = engine.pipe
        self.pipe.set_progress_bar_config(disable=True)

    def generate(self, batch: Batch, call: dict[str, Any]) -> torch.Tensor:
        """Generate as `Backend` says; every rank holds all pictures."""
        ranks = world.all_gather_objects(self.engine.generate(batch, **call))
        by_index = {index: output for rank in ranks for index, output in rank.items()}
        outputs = [by_index[request.index] for request in batch]
        if isinstance(outputs[0], torch.Tensor):
            return torch.stack(outputs).cpu()
        frames = [frame for each in outputs for frame in frames_of(each)]
        return _pictures(np.stack([np.asarray(frame.convert("RGB")) / 255 for frame in frames]))


def _pictures(values: np.ndarray) -> torch.Tensor:
    """Bring [N, H, W, 3] or [N, T, H, W, 3] to [N or N T, 3, H, W], float64, rounded to what an 8-bit file holds."""
    frames = torch.from_numpy(values).reshape(-1, *values.shape[-3:]).permute(0, 3, 1, 2)
    return (frames.double() * 255).round() / 255
