"""What must be known of a model, as data: where its blocks are, what they take and return, what xDiT has for it."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

HIDDEN, ENCODER = "hidden_states", "encoder_hidden_states"


class Streams(NamedTuple):
    """The token streams that run through a stack of blocks: image [B, N, D] and, in joint models, text [B, M, D]."""

    hidden_states: torch.Tensor
    encoder_hidden_states: torch.Tensor | None = None


Reader = Callable[[Sequence[Any], Mapping[str, Any]], Streams]  # from the arguments of a block's call


@dataclass(frozen=True)
class BlockSpec:
    """How one kind of block is called.

    Attributes:
        returns: the streams among its outputs in order; None for an output that is always None.
        takes: names of the arguments that streams come in by; a stream without one comes in by its own name.
        boxed: whether a single output comes in a tuple; otherwise it is a bare tensor.
        container: type of what holds the outputs, such as a named tuple.
        attentions: names of its attention modules whose `to_k` and `to_v` see the image tokens. If it mixes tokens
            nowhere else, some tokens can go through the block without the others; empty where it does, or may.
        rotary: whether they rotate queries and keys by tables [M + N, d] for text and image tokens, with the
            `apply_rotary_emb` that their processors' module imports.
    """

    returns: tuple[str | None, ...] = (HIDDEN,)
    takes: Mapping[str, str] = field(default_factory=dict)
    boxed: bool = False
    container: type = tuple
    attentions: tuple[str, ...] = ()
    rotary: bool = False

    def reader(self, signature: inspect.Signature) -> Reader:
        """Return what picks the streams out of the arguments of a call; a call is not bound, as that takes longer."""
        hidden, text = self.takes.get(HIDDEN, HIDDEN), self.takes.get(ENCODER, ENCODER)
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = (name for name, parameter in signature.parameters.items() if parameter.kind in kinds)
        places = {name: place for place, name in enumerate(names)}
        hidden_at, text_at = places.get(hidden, sys.maxsize), places.get(text, sys.maxsize)
        is_joint = ENCODER in self.returns

        def read(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Streams:
            hidden_states = kwargs[hidden] if hidden in kwargs else args[hidden_at]
            if not is_joint:
                return Streams(hidden_states)
            return Streams(hidden_states, args[text_at] if text_at < len(args) else kwargs.get(text))

        return read

    def with_hidden(self, call: inspect.BoundArguments, hidden_states: torch.Tensor) -> inspect.BoundArguments:
        """Return the same call with other image tokens [B, K, D]."""
        return inspect.BoundArguments(call.signature, call.arguments | {HIDDEN: hidden_states})  # type: ignore[arg-type]

    def unpack(self, output: Any) -> Streams:
        """Turn a block's output into streams."""
        if self._is_bare:
            return Streams(output)
        return Streams(**{name: part for name, part in zip(self.returns, output, strict=True) if name})

    def pack(self, streams: Streams) -> Any:
        """Turn streams into what the block would return."""
        if self._is_bare:
            return streams.hidden_states
        parts = [name and getattr(streams, name) for name in self.returns]
        return self.container(*parts) if self._is_named else self.container(parts)

    @functools.cached_property
    def _is_named(self) -> bool:
        return hasattr(self.container, "_fields")

    @functools.cached_property
    def _is_bare(self) -> bool:
        return len(self.returns) == 1 and not self.boxed


@dataclass(frozen=True)
class ModelSpec:
    """One transformer class.

    Attributes:
        name: class name of the diffusers transformer; subclasses match too.
        blocks: name of each block list, in the order in which the model runs them.
        bypass: forward arguments that change what happens between blocks; a call that sets one is computed in full.
        added: forward arguments, as of a ControlNet, that are added to all image tokens between blocks. Segments are
            skipped with them, as their residual holds what was added; a call that sets one has no partial steps.
        patches_follow_first: under PipeFusion all patches of a step take the first patch's decision, because the model
            hands the first patch's text states to the others block by block.
        patches_in_part: PipeFusion patches may be computed in part: attention takes keys of more tokens than queries.
        packed: its pipeline makes one token of so many x so many latents; 0 where the transformer's `patch_size` does.
        order: names of all blocks in running order; empty where one list runs after the other.
        joints: names of the blocks before which the model changes, joins or rearranges the streams.
        computed: for each other list of blocks, why it is always computed.
    """

    name: str
    blocks: dict[str, BlockSpec] = field(default_factory=dict)
    bypass: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    patches_follow_first: bool = False
    patches_in_part: bool = True
    packed: int = 0
    order: tuple[str, ...] = ()
    joints: frozenset[str] = frozenset()
    computed: Mapping[str, str] = field(default_factory=dict)


def timestep_of(signature: inspect.Signature) -> str:
    """Return the name of a forward's argument for the timestep: `timestep`, or else the first one like it, or none."""
    names = list(signature.parameters)
    alike = (name for name in names if name == "t" or "time" in name)
    return "timestep" if "timestep" in names else next(alike, "")


def named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name, including those collected by `**`."""
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments
