"""What calibration and tuning run again and again, each time from the same noise: pipeline calls, and loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fastcache_xdit.errors import UsageError
from fastcache_xdit.evaluate.quality import psnr_db, to_tensor
from fastcache_xdit.host.xdit import video
from fastcache_xdit.learning.calls import fresh

Branch = Callable[[str], AbstractContextManager[Any]]  # names the CFG branch of calls inside a with block
_OURS = ("generator", "output_type", "return_dict")  # set for each run


class PipelineCall:
    """A call `pipe(**arguments)`: text or image to image, inpainting, ControlNet, video.

    Args:
        arguments: of the call; its generators are left as they are, and each run begins from copies of their state.
        seed: of the noise where there is no generator.
    """

    def __init__(self, arguments: Mapping[str, Any], seed: int) -> None:
        self.arguments = {name: value for name, value in arguments.items() if name not in _OURS}
        self.seed = seed
        self.generator = _repeatable(arguments.get("generator"), seed)

    @property
    def steps(self) -> int:
        """The number of inference steps that it asks for."""
        return self.arguments["num_inference_steps"]

    def changed(self, **arguments: Any) -> PipelineCall:
        """Return a call with some other arguments."""
        return PipelineCall({**self.arguments, "generator": self.generator(), **arguments}, self.seed)

    def run(self, pipe: Callable[..., Any], output_type: str, branch: Branch) -> list[Any] | None:
        """Return the samples, a video as one picture of its frames; None on a rank that gets none."""
        output = pipe(**self.arguments, generator=self.generator(), output_type=output_type)
        if output is None:
            return None
        return video.pictures(output.frames) if hasattr(output, "frames") else list(output.images)

    def psnr(self, pictures: Sequence[Any], references: Sequence[Any]) -> list[float]:
        """Return the PSNR of each PIL image, in dB."""
        return psnr_db(to_tensor(pictures), to_tensor(references))


class LoopCall:
    """A denoising loop of the user's own.

    Args:
        loop: runs the transformer over all steps and returns the final latents [B, ...]; see `calibrate`.
        seed: of torch's own random numbers while it runs.
    """

    def __init__(self, loop: Callable[[Branch], torch.Tensor], seed: int) -> None:
        self.loop = loop
        self.seed = seed

    def changed(self, **arguments: Any) -> LoopCall:
        """Refuse, since the loop says what it does.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{' and '.join(arguments)} of a loop are in the loop", "tune each number of steps by itself")

    def run(self, pipe: Any, output_type: str, branch: Branch) -> list[torch.Tensor]:
        """Return the final latents of each sample; there is nothing else to return.

        Raises:
            UsageError: the loop returns no tensor.
        """
        latents = self.loop(branch)
        if not isinstance(latents, torch.Tensor):
            raise UsageError(f"a loop must return its final latents [B, ...], not {type(latents).__name__}")
        return list(latents)

    def psnr(self, pictures: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> list[float]:
        """Return the PSNR of each sample's latents, in dB of the range of the reference."""
        return [_range_psnr(mine, theirs) for mine, theirs in zip(pictures, references, strict=True)]


Call = PipelineCall | LoopCall


def calls_of(target: Any, given: Sequence[Any]) -> list[Call]:
    """Return the calls that a user gave: dicts of arguments, or functions that run a loop; seeds are their numbers.

    Raises:
        UsageError: something else, or arguments for a transformer.
    """
    if isinstance(given, (str, Mapping)) or callable(given):
        raise UsageError("calls are a list, with an entry for each call")
    return [_call_of(target, call, number) for number, call in enumerate(given)]


def _call_of(target: Any, given: Any, seed: int) -> Call:
    if callable(given):
        return LoopCall(given, seed)
    if not isinstance(given, Mapping):
        raise UsageError(f"a call is a dict of arguments, or a function that runs a loop, not {type(given).__name__}")
    if isinstance(target, nn.Module):
        raise UsageError("a transformer cannot be called with a pipeline's arguments", "give functions that run a loop")
    return PipelineCall(given, seed)


def _repeatable(generator: Any, seed: int) -> Callable[[], Any]:
    """Return what makes new generators in the state that these are in now."""
    if isinstance(generator, (list, tuple)):
        makers = [_repeatable(each, seed + number) for number, each in enumerate(generator)]
        return lambda: [make() for make in makers]
    if generator is None:
        return lambda: torch.Generator("cpu").manual_seed(seed)
    return functools.partial(fresh, fresh(generator))


def _range_psnr(latents: torch.Tensor, reference: torch.Tensor) -> float:
    low, high = reference.aminmax()
    mine, theirs = (((each - low) / (high - low)).double().cpu().reshape(1, 1, 1, -1) for each in (latents, reference))
    return psnr_db(mine, theirs)[0]
