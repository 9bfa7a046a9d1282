"""Where requests run: a plain diffusers pipeline in one process, or xDiT on several ranks."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch

from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.engine import Batch, Engine
from fastcache_xdit.host.xdit.loading import DTYPES, silence_loading
from fastcache_xdit.undo import Undo


class Place(Protocol):
    """One loaded model.

    Attributes:
        pipe: what caches are switched on on.
        ranks: how many processes take part.
    """

    pipe: Any
    ranks: int

    def generate(self, batch: Batch, call: dict[str, Any]) -> torch.Tensor:
        """Pictures [N, 3, H, W] in 0..1, frames of videos one after the other; or latents, by `output_type`."""


class Plain:
    """A diffusers pipeline in this process, which is what most caches are made for."""

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
        """See `Place`; arguments that the pipeline does not take are left out."""
        call = {name: value for name, value in call.items() if name in self._accepts}
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in batch]
        output = self.pipe(
            prompt=[request.prompt for request in batch], generator=generators, **{"output_type": "np", **call}
        )[0]
        return output.cpu() if isinstance(output, torch.Tensor) else _pictures(output)


class Parallel:
    """xDiT on all ranks that were started."""

    def __init__(self, engine: Engine, ranks: int) -> None:
        self.engine, self.ranks = engine, ranks
        self.pipe = engine.pipe
        self.pipe.set_progress_bar_config(disable=True)

    def generate(self, batch: Batch, call: dict[str, Any]) -> torch.Tensor:
        """See `Place`; every rank holds all pictures."""
        everyone = world.all_gather_objects(self.engine.generate(batch, **call))
        found = {index: each for part in everyone for index, each in part.items()}
        rows = [found[request.index] for request in batch]
        if isinstance(rows[0], torch.Tensor):
            return torch.stack(rows).cpu()
        return _pictures(np.stack([np.asarray(image.convert("RGB")) / 255 for image in rows]))


def _pictures(values: np.ndarray) -> torch.Tensor:
    """[N, H, W, 3] or [N, T, H, W, 3] -> [N or N T, 3, H, W], rounded to what an 8-bit file holds, float64."""
    frames = torch.from_numpy(values).reshape(-1, *values.shape[-3:]).permute(0, 3, 1, 2)
    return (frames.double() * 255).round() / 255


class Tape:
    """What passes by in one request: latents as they enter the decoder, and the clean latents that steps predict."""

    def __init__(self, pipe: Any) -> None:
        self.latents: torch.Tensor | None = None
        self.clean: list[torch.Tensor] = []
        self._pipe = pipe

    @contextlib.contextmanager
    def running(self, on: bool) -> Iterator[Tape]:
        """Record for the length of a with block, or stay empty (xDiT hands its patches on inside of `step`)."""
        with Undo() as undo:
            if not on:
                yield self
                return
            undo.set(self._pipe.vae, "decode", self._decoding(self._pipe.vae.decode))
            undo.set(self._pipe.scheduler, "step", self._stepping(self._pipe.scheduler.step))
            yield self

    def _decoding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def decode(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.latents = latents.detach().double().cpu()
            return original(latents, *args, **kwargs)

        return decode

    def _stepping(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def step(output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            # All reference models learn flows, where the noise level is the timestep's share of the whole.
            level = float(timestep) / self._pipe.scheduler.config.num_train_timesteps
            self.clean.append((sample - level * output).detach())
            return original(output, timestep, sample, *args, **kwargs)

        return step
