"""The transformer of the last PipeFusion stage, called as if that stage were the only one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from fastcache_xdit.models.spec import Streams
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.segment import Block
from fastcache_xdit.undo import Undo

TEXTS = "encoder_hidden_states_cache"


def stages() -> Any:
    """Return xDiT's module that knows the PipeFusion stages."""
    return importlib.import_module("xfuser.core.distributed.parallel_state")


class SingleStage:
    """Calls of one pipeline's transformer beside xDiT's loops.

    Args:
        pipe: the pipeline.
        session: of its transformer.
        first_block: the first block of this stage.
        backbone: xDiT's `_backbone_forward`.

    Attributes:
        text: what the loop that runs was given as `prompt_embeds`.
        call: arguments of the last call of the backbone.
    """

    def __init__(self, pipe: Any, session: Session, first_block: Block, backbone: Callable[..., Any]) -> None:
        self._transformer, self._session, self._backbone = pipe.transformer, session, backbone
        self._first_block = first_block
        module = first_block.module
        self._signature = inspect.signature(getattr(module, "_orig_mod", module).forward)
        self.text: torch.Tensor | None = None
        self.call: dict[str, Any] = {}

    def clear(self) -> None:
        """Free what was kept of a request."""
        self.text, self.call = None, {}

    def predict(self, latents: torch.Tensor, t: torch.Tensor, step: int) -> torch.Tensor:
        """Return what the model predicts for the current patch at a skipped step."""
        with self._only_stage(), self._session.clock.at(step):
            output = self._backbone(**self._first_stage_call(latents, t))
        return output[0] if isinstance(output, tuple) else output

    def entering(self, latents: torch.Tensor, t: torch.Tensor) -> Streams:
        """Return what entered the first stage's blocks.

        The call ends at the first block, by an exception: nothing else ends a forward, and what follows (this stage's
        blocks, the last layers) would be computed for nothing.
        """
        with self._only_stage(), self._session.aside(), Undo() as undo:
            undo.set(self._first_block.module, "forward", self._stop)
            try:
                self._backbone(**self._first_stage_call(latents, t))
            except _FirstBlockReached as reached:
                return reached.entered
        raise AssertionError("no block was called")

    def _stop(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _FirstBlockReached(self._first_block.spec.read(self._signature.bind(*args, **kwargs).arguments))

    def _first_stage_call(self, latents: torch.Tensor, t: torch.Tensor) -> dict[str, Any]:
        """The last call's arguments as the first stage has them."""
        text = {"encoder_hidden_states": self.text} if "encoder_hidden_states" in self.call else {}
        return {**self.call, "latents": latents, "t": t, **text}

    @contextmanager
    def _only_stage(self) -> Iterator[None]:
        """Let the transformer take this stage for the first and the last one.

        xDiT's transformers ask module functions, and take no argument instead. SD3 keeps the first patch's text for the
        others, which must not be that of a step that is ahead.
        """
        with Undo() as undo:
            if TEXTS in vars(self._transformer):
                undo.set(self._transformer, TEXTS, list(getattr(self._transformer, TEXTS)))
            undo.set(stages(), "get_pipeline_parallel_rank", lambda: 0)
            undo.set(stages(), "get_pipeline_parallel_world_size", lambda: 1)
            yield


class _FirstBlockReached(Exception):
    """Carries out what was about to enter the first block."""

    def __init__(self, entered: Streams) -> None:
        super().__init__()
        self.entered = entered
