"""Partial steps: which tokens of a segment are computed, and how they attend to the others."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from fastcache_xdit.approx.keys_values import KeysValuesForecast
from fastcache_xdit.clock import Tick
from fastcache_xdit.errors import UsageError
from fastcache_xdit.models.spec import Streams
from fastcache_xdit.options import TokensConfig
from fastcache_xdit.parallel.consensus import Consensus
from fastcache_xdit.parallel.ledger import Ledger
from fastcache_xdit.partial.background import Background
from fastcache_xdit.partial.balance import KeptTokens, TokenScores, choose_tokens
from fastcache_xdit.partial.merged import merge
from fastcache_xdit.partial.static_keys_values import StaticKeysValues
from fastcache_xdit.segments.attention import attentions_of, projections
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.state import SegmentState
from fastcache_xdit.tokens.region import tokens_inside
from fastcache_xdit.tokens.saliency import token_change
from fastcache_xdit.tokens.selection import larger_of_branches
from fastcache_xdit.undo import Undo

OnTokens = Callable[[Tick, KeptTokens, torch.Tensor], None]  # see `Observer.on_tokens`


class PartialCall(NamedTuple):
    """A segment at a partial step: the tokens that are computed, and the estimated output of all tokens."""

    kept: KeptTokens
    estimate: Streams

    def finish(self, output: Streams) -> Streams:
        """Return the output of the segment, given its last block's output for the kept tokens and all text tokens."""
        return output._replace(hidden_states=self.kept.put(output.hidden_states, self.estimate.hidden_states))


class PartialSteps:
    """Chooses the tokens of partial steps, by scores that all ranks of a sequence exchange.

    Args:
        options: how many tokens are computed, and which scores rank them.
        consensus: exchanges scores.
        ledger: its stamp is exchanged with them.
        forecast: extrapolates the keys and values of static tokens; None to reuse those last computed.
        on_tokens: called with the choice at each partial step.
    """

    def __init__(
        self,
        options: TokensConfig,
        consensus: Consensus,
        ledger: Ledger,
        forecast: KeysValuesForecast | None = None,
        on_tokens: OnTokens | None = None,
    ) -> None:
        self.options = options
        self.consensus = consensus
        self.ledger = ledger
        self.keys_values = StaticKeysValues(forecast)
        self.background = Background(options.blend)
        self.on_tokens = on_tokens
        self._halves_equal: torch.Tensor | None = None  # bool on the device
        self._mask: torch.Tensor | None = None
        self._in_region: dict[tuple[int, int], tuple[KeptTokens | None, TokenScores]] = {}

    def focus(self, mask: torch.Tensor) -> None:
        """Set the region for `score: region`: from now on compute the tokens that the mask [H, W] touches."""
        self._mask = mask
        self._in_region.clear()

    def attach(self, segments: Iterable[Segment], undo: Undo) -> None:
        """Stand around projections to keys and values and rotary embeddings, for as long as the undo log is open."""
        no_static_rows = self.options.static_kv == "drop" or self.options.merge_ratio is not None
        for name, layer in () if no_static_rows else projections(segments):
            undo.wrap(layer, "__call__", functools.partial(self.keys_values.completing, name))
        for module in _rotary_modules(segments):
            undo.set(module, "apply_rotary_emb", self.keys_values.rotating(module.apply_rotary_emb))

    def compare_halves(self, latents: torch.Tensor) -> None:
        """Compare the halves of a batch of latents; equal ones are the two CFG branches, which keep the same tokens.

        The comparison stays on the device and needs no host read. Later PipeFusion stages receive no latents, so there
        the two branches choose their tokens independently.
        """
        halves = latents.chunk(2) if len(latents) % 2 == 0 else ()
        self._halves_equal = (halves[0] == halves[1]).all() if halves else None

    def choose(self, tick: Tick, state: SegmentState, entered: Streams, estimate: Streams) -> PartialCall | None:
        """Choose the tokens of a partial step; None if so many move that it should be a full step.

        Args:
            tick: position of the call.
            state: cached states of the segment.
            entered: the streams that enter it.
            estimate: the stand-in's output.
        Raises:
            UsageError: `score: region` without a call of `focus`, or with a mask that does not fit the tokens.
        """
        kept = self._kept(tick, state, entered.hidden_states, estimate.hidden_states)
        if kept is None:
            return None
        blended = self.background.blended(tick, estimate.hidden_states)
        return PartialCall(kept, estimate._replace(hidden_states=blended))

    def enter(self, tick: Tick, part: PartialCall | None) -> None:
        """Begin the blocks of a segment, on all tokens or on those of a partial step."""
        self.keys_values.enter(tick, part and part.kept)

    def leave(self, tick: Tick, output: Streams | None) -> None:
        """End the blocks of a segment; `output` is that of a full step, None for a partial one."""
        self.keys_values.leave()
        if output is not None:
            self.background.add(tick, output.hidden_states)

    def clear(self) -> None:
        """Forget what is stored of a request."""
        self.keys_values.clear()
        self.background.clear()

    def bytes_held(self) -> int:
        """Return the bytes of the stored tensors."""
        return self.keys_values.bytes_held() + self.background.bytes_held()

    def _kept(
        self, tick: Tick, state: SegmentState, entered: torch.Tensor, estimate: torch.Tensor
    ) -> KeptTokens | None:
        assert state.reference is not None
        reference = state.reference.to(entered.dtype)
        if self.options.merge_ratio is not None:
            return merge(self.options, entered, reference)
        if self.options.score == "region":
            kept, scores = self._region(entered)
        else:
            by_input = self.options.score == "input_change"
            scores = self._scores(entered, reference, tick) if by_input else self._scores(estimate, state.output, tick)
            kept = choose_tokens(scores, self.options, self.consensus)
        if self.on_tokens and kept:
            self.on_tokens(tick, kept, scores.by_shard[self.consensus.shard])
        return kept

    def _region(self, entered: torch.Tensor) -> tuple[KeptTokens | None, TokenScores]:
        """Return the tokens of the mask and their scores; ranks compare the mask once for each size."""
        batch, length, _ = entered.shape
        if (batch, length) not in self._in_region:
            if self._mask is None:
                raise UsageError("tokens.score=region needs to know what an edit may change", "call handle.focus(mask)")
            shards = self.consensus.shard_count
            inside = tokens_inside(self._mask, shards * length)
            self.consensus.confirm(self.ledger.stamp_with(inside.tolist()), "the mask of handle.focus")
            by_shard = inside.to(entered).view(shards, 1, length).expand(-1, batch, -1)
            scores = TokenScores(by_shard, by_shard.sum())
            self._in_region[batch, length] = choose_tokens(scores, self.options, self.consensus), scores
        return self._in_region[batch, length]

    def _scores(self, now: torch.Tensor, before: torch.Tensor, tick: Tick) -> TokenScores:
        """Return the scores of all shards and the mean energy, exchanged in one message."""
        energy = before.float().square().sum(dim=(1, 2))
        local = torch.cat([token_change(now, before), energy[:, None]], dim=1)
        if self._halves_equal is not None:
            local = torch.where(self._halves_equal, larger_of_branches(local), local)
        gathered = self.consensus.gather_shards(local, self.ledger.stamp, f"step {tick.step}, tokens")
        scores, energies = gathered[..., :-1], gathered[..., -1]
        return TokenScores(scores, energies.sum(dim=0) / (scores.shape[0] * scores.shape[2]))


def _rotary_modules(segments: Iterable[Segment]) -> list[Any]:
    """Return the Python modules in which attention processors look up `apply_rotary_emb`, each once."""
    blocks = [block for segment in segments for block in segment.blocks if block.spec.rotary]
    names = {type(attention.processor).__module__ for block in blocks for _, attention in attentions_of(block)}
    return [sys.modules[name] for name in sorted(names)]
