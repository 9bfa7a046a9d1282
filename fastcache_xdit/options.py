"""What every group of options has in common, and the options of the token level."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fastcache_xdit.errors import UsageError


class Options(BaseModel):
    """Frozen and keyword-only; an unknown option is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _known_options(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise unknown_option(name, cls.model_fields)
        return values


def unknown_option(name: str, known: Any) -> UsageError:
    """Make the error for an option that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
    return UsageError(f"unknown option {name!r}", hint)


Share = Annotated[float, Field(gt=0, le=1)]


class TokensConfig(Options):
    """Partial steps: only the tokens that move go through the blocks, the others take the stand-in; or all do, merged.

    Exactly one of `keep_ratio`, `threshold`, `merge_ratio` and `score: region` says how many.

    Attributes:
        when: a step is partial where the schedule marks it `p` (`scheduled`), and with `significant` also where nothing
            but the test wants it computed.
        score: by which tokens are ranked: how far the stand-in moves a token's output from the last whole step's
            (`predicted_change`), or how far the token itself moved on entry (`input_change`, the paper's). `region`:
            those that an edit may change, which `handle.focus(mask)` names.
        keep_ratio: share of the image tokens that a partial step computes.
        threshold: instead of `keep_ratio`: tokens are computed whose score, a squared distance, is at least this share
            of the mean squared norm of the tokens. At 0 every token is computed.
        merge_ratio: instead of either: similar tokens of a window are merged to this share of them before the blocks
            and unmerged behind; none is static, and keys and values are those of the merged ones. A list merges in
            stages, each a share of what the one before left, and each of windows that reach further.
        merge_window: consecutive tokens of one rank among which some are merged.
        merge_neighbours: nearest others of a window by which a token's density is measured.
        merge_temporal_weight: how much a token's change since the last whole step adds to its importance in a merge.
        bucket: counts of computed tokens are rounded up to a multiple of this.
        min_static_ratio: where a smaller share of tokens would be saved, a step is computed whole.
        costs: what `fastcache-xdit bench costs` measured of this model on these machines: for some shares of computed
            tokens the time of a partial step over that of a whole one. A step whose share costs 1 or more, in between
            by interpolation, is computed whole.
        static_kv: static tokens stay in sight of the others by their last keys and values (`reuse`), by keys and values
            that a calibration's weights make of those of the last whole steps (`forecast`, which holds three of them),
            or not at all (`drop`, the paper's).
        blend: motion-aware blending, g: static tokens become g stand-in + (1 - g) the mean of what they came to at this
            request's whole steps; 1 is the stand-in alone.
        balance: sequence-parallel ranks must compute equally many tokens. `pad`: each computes as many of its own as
            the rank with the most needs. `reshard`: rows move between ranks, so that no rank computes more than its
            part, at two more messages per block.
    """

    when: Literal["significant", "scheduled"] = "significant"
    score: Literal["predicted_change", "input_change", "region"] = "predicted_change"
    keep_ratio: float | None = Field(None, gt=0, le=1)
    threshold: float | None = Field(None, ge=0, allow_inf_nan=False)
    merge_ratio: Share | tuple[Share, ...] | None = None
    merge_window: int = Field(64, ge=1)
    merge_neighbours: int = Field(5, ge=1)
    merge_temporal_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    bucket: int = Field(16, ge=1)
    min_static_ratio: float = Field(0.1, ge=0, lt=1)
    costs: dict[float, float] | None = None
    static_kv: Literal["reuse", "forecast", "drop"] = "reuse"
    blend: float = Field(1.0, gt=0, le=1)
    balance: Literal["pad", "reshard"] = "pad"

    @model_validator(mode="after")
    def _one_measure(self) -> TokensConfig:
        measures = {name: getattr(self, name) for name in ("keep_ratio", "threshold", "merge_ratio")}
        given = [name for name, value in measures.items() if value is not None]
        given += ["score=region"] if self.score == "region" else []
        if len(given) != 1:
            found = f"not {' and '.join(given)}" if given else "none is given"
            raise UsageError(f"give exactly one of {', '.join(measures)}, score=region; {found}")
        return self

    @field_validator("costs")
    @classmethod
    def _known_shares(cls, costs: dict[float, float] | None) -> dict[float, float] | None:
        if costs is not None and not (costs and all(0 < share <= 1 and cost > 0 for share, cost in costs.items())):
            raise UsageError(f"costs map shares of tokens, 0 to 1, to relative times, as in {{0.25: 0.4}}; not {costs}")
        return costs

    def pays(self, share: float) -> bool:
        """Whether a partial step that computes this share of the tokens is worth it."""
        if share >= 1 or 1 - share < self.min_static_ratio - 1e-9:
            return False
        if self.costs is None:
            return True
        shares = sorted(self.costs)
        return bool(np.interp(share, shares, [self.costs[each] for each in shares]) < 1)

    @model_validator(mode="after")
    def _merged_alone(self) -> TokensConfig:
        for name in ("score", "static_kv", "balance", "blend"):
            if self.merge_ratio is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise UsageError(
                    f"{name}={getattr(self, name)} has no meaning with merge_ratio, which keeps no token static"
                )
        return self
