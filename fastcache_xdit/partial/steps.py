"""Partial steps: which tokens of a segment are computed, and what they see of the others."""

from __future__ import annotations

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
from fastcache_xdit.partial.balance import Kept, TokenScores, choose_tokens
from fastcache_xdit.partial.context import Context
from fastcache_xdit.partial.merged import merge
from fastcache_xdit.segments.attention import attentions_of, projections
from fastcache_xdit.segments.segment import Segment
from fastcache_xdit.segments.state import SegmentState
from fastcache_xdit.tokens.region import tokens_inside
from fastcache_xdit.tokens.saliency import token_change
from fastcache_xdit.tokens.selection import share_pairs
from fastcache_xdit.undo import Undo

Watch = Callable[[Tick, Kept, torch.Tensor], None]  # see `Observer.on_tokens`


class Part(NamedTuple):
    """A segment during a partial step: the tokens that are computed, and the stand-in's output for the others."""

    kept: Kept
    estimate: Streams

    def finish(self, output: Streams) -> Streams:
        """Return the segment's output, given that of its last block for the kept tokens; text is computed whole."""
        return output._replace(hidden_states=self.kept.put(output.hidden_states, self.estimate.hidden_states))


class PartialSteps:
    """Chooses tokens, by scores that all ranks of a sequence exchange.

    Args:
        options: how many, and by which scores.
        consensus: exchanges scores.
        ledger: its stamp travels with them.
        forecast: makes keys and values of static tokens; without it those of the reference step stay.
        watch: called with what each partial step chooses.
    """

    def __init__(
        self,
        options: TokensConfig,
        consensus: Consensus,
        ledger: Ledger,
        forecast: KeysValuesForecast | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.options = options
        self.consensus = consensus
        self.ledger = ledger
        self.context = Context(forecast)
        self.background = Background(options.blend)
        self.watch = watch
        self._twins: torch.Tensor | None = None
        self._mask: torch.Tensor | None = None
        self._in_region: dict[tuple[int, int], tuple[Kept | None, TokenScores]] = {}

    def focus(self, mask: torch.Tensor) -> None:
        """Compute with `score: region`, from now on, the tokens that hold a part of the mask [H, W]."""
        self._mask = mask
        self._in_region.clear()

    def attach(self, segments: Iterable[Segment], undo: Undo) -> None:
        """Stand behind the projections to keys and values, for as long as the undo log lives."""
        apart = self.options.static_kv == "drop" or self.options.merge_ratio is not None
        for name, layer in () if apart else projections(segments):
            undo.set(layer, "forward", self.context.wrapped(name, layer.forward))
        for module in _rotary_modules(segments):
            undo.set(module, "apply_rotary_emb", self.context.rotating(module.apply_rotary_emb))

    def look(self, latents: torch.Tensor) -> None:
        """See what a step begins with: under guidance in one batch the halves are the same, and so are their tokens.

        Found out on the device, at no host read. A later PipeFusion stage sees no latents, and its halves go apart.
        """
        halves = latents.chunk(2) if len(latents) % 2 == 0 else ()
        self._twins = (halves[0] == halves[1]).all() if halves else None

    def choose(self, tick: Tick, state: SegmentState, entered: Streams, estimate: Streams) -> Part | None:
        """Choose the tokens of a step that was decided to be partial; None where so many move that it should be whole.

        Args:
            tick: where the call stands.
            state: of the segment.
            entered: the streams that enter it.
            estimate: the stand-in's output.
        """
        kept = self._kept(tick, state, entered.hidden_states, estimate.hidden_states)
        if kept is None:
            return None
        static = self.background.blended(tick, estimate.hidden_states)
        return Part(kept, estimate._replace(hidden_states=static))

    def enter(self, tick: Tick, part: Part | None) -> None:
        """Note that the blocks are about to be computed, whole or in part."""
        self.context.enter(tick, part and part.kept)

    def leave(self, tick: Tick, whole: Streams | None) -> None:
        """Note that the blocks are done; `whole` is what they gave, where all tokens were computed."""
        self.context.leave()
        if whole is not None:
            self.background.add(tick, whole.hidden_states)

    def clear(self) -> None:
        """Forget what is kept of a request."""
        self.context.clear()
        self.background.clear()

    def bytes_held(self) -> int:
        """Return the bytes of the tensors kept."""
        return self.context.bytes_held() + self.background.bytes_held()

    def _kept(self, tick: Tick, state: SegmentState, entered: torch.Tensor, estimate: torch.Tensor) -> Kept | None:
        reference = state.reference
        assert reference is not None
        if self.options.merge_ratio is not None:
            return merge(self.options, entered, reference)
        if self.options.score == "region":
            kept, scores = self._region(entered)
        else:
            by_input = self.options.score == "input_change"
            scores = self._scores(entered, reference, tick) if by_input else self._scores(estimate, state.output, tick)
            kept = choose_tokens(scores, self.options, self.consensus)
        if self.watch and kept:
            self.watch(tick, kept, scores.by_shard[self.consensus.shard])
        return kept

    def _region(self, entered: torch.Tensor) -> tuple[Kept | None, TokenScores]:
        """The tokens of the mask; found, and compared between ranks, once for each size."""
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
        """Every shard's scores and energy, in one message."""
        energy = before.float().square().sum(dim=(1, 2))
        local = torch.cat([token_change(now, before), energy[:, None]], dim=1)
        if self._twins is not None:
            local = torch.where(self._twins, share_pairs(local), local)
        gathered = self.consensus.gather_shards(local, self.ledger.stamp, f"step {tick.step}, tokens")
        scores, energies = gathered[..., :-1], gathered[..., -1]
        return TokenScores(scores, energies.sum(dim=0) / (scores.shape[0] * scores.shape[2]))


def _rotary_modules(segments: Iterable[Segment]) -> list[Any]:
    """The Python modules in which attention processors look `apply_rotary_emb` up, each once."""
    blocks = [block for segment in segments for block in segment.blocks if block.spec.rotary]
    names = {type(attention.processor).__module__ for block in blocks for _, attention in attentions_of(block)}
    return [sys.modules[name] for name in sorted(names)]
