"""The transformer of the last PipeFusion stage, called as if that stage were the only one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from fastcache_xdit.models.spec import Streams
from fastcache_xdit.models.watch import signature_of
from fastcache_xdit.runtime.session import Session
from fastcache_xdit.segments.segment import Block
from fastcache_xdit.undo import Undo

TEXTS = "encoder_hidden_states_cache"


def stages() -> Any:
    """Return xDiT's module with the functions about PipeFusion stages."""
    return importlib.import_module("xfuser.core.distributed.parallel_state")


class SingleStage:
    """Calls the transformer of a pipeline outside xDiT's loops.

    Args:
        pipe: the pipeline.
        session: the session of its transformer.
        first_block: the first block of this stage.
        backbone: xDiT's `_backbone_forward`.

    Attributes:
        text: `prompt_embeds` of the running loop.
        call: arguments of the last call of the backbone.
    """

    def __init__(self, pipe: Any, session: Session, first_block: Block, backbone: Callable[..., Any]) -> None:
        self._transformer, self._session, self._backbone = pipe.transformer, session, backbone
        self._first_block = first_block
        self._read = first_block.spec.reader(signature_of(first_block.module))
        self.text: torch.Tensor | None = None
        self.call: dict[str, Any] = {}

    def clear(self) -> None:
        """Free the tensors of the last request."""
        self.text, self.call = None, {}

    def predict(self, latents: torch.Tensor, t: torch.Tensor, step: int) -> torch.Tensor:
        """Return the prediction of the model for the current patch at a skipped step."""
        with self._only_stage(), self._session.clock.at(step):
            output = self._backbone(**self._first_stage_call(latents, t))
        return output[0] if isinstance(output, tuple) else output

    def entering(self, latents: torch.Tensor, t: torch.Tensor) -> Streams:
        """Return the streams that entered the blocks of the first stage.

        An exception ends the call at the first block. There is no other way to end a forward, and the rest of it (this
        stage's blocks, the last layers) is not needed.
        """
        with self._only_stage(), self._session.bypassed(), Undo() as undo:
            undo.wrap(self._first_block.module, "__call__", self._stop)
            try:
                self._backbone(**self._first_stage_call(latents, t))
            except _FirstBlockReached as reached:
                return reached.entered
        raise AssertionError("no block was called")

    def _stop(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
        raise _FirstBlockReached(self._read(args, kwargs))

    def _first_stage_call(self, latents: torch.Tensor, t: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of the last call as the first stage receives them."""
        text = {"encoder_hidden_states": self.text} if "encoder_hidden_states" in self.call else {}
        return {**self.call, "latents": latents, "t": t, **text}

    @contextmanager
    def _only_stage(self) -> Iterator[None]:
        """Make the transformer treat this stage as the only one, inside the with block.

        xDiT's transformers read the stage from module functions; there is no argument for it. SD3 keeps the text of the
        first patch for the other patches, which must not receive that of a later step.
        """
        with Undo() as undo:
            if TEXTS in vars(self._transformer):
                undo.set(self._transformer, TEXTS, list(getattr(self._transformer, TEXTS)))
            undo.set(stages(), "get_pipeline_parallel_rank", lambda: 0)
            undo.set(stages(), "get_pipeline_parallel_world_size", lambda: 1)
            yield


class _FirstBlockReached(Exception):
    """Ends a forward at the first block, with the streams that were about to enter it."""

    def __init__(self, entered: Streams) -> None:
        super().__init__()
        self.entered = entered
