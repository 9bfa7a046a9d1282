"""What every group of options has in common, and the options of the token level."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Options(BaseModel):
    """Frozen and keyword-only; an unknown option is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _known_options(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(unknown_option(name, cls.model_fields))
        return values


def unknown_option(name: str, known: Any) -> str:
    """The sentence for an option that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
    return f"unknown option {name!r}; {hint}"


class TokensConfig(Options):
    """Partial steps: only the tokens that move go through the blocks, the others take the stand-in.

    Attributes:
        when: a step is partial where the schedule marks it `p` (`scheduled`), and with `significant` also where nothing
            but the test wants it computed.
        score: by which tokens are ranked: how far the stand-in moves a token's output from the last whole step's
            (`predicted_change`), or how far the token itself moved on entry (`input_change`, the paper's).
        keep_ratio: share of the image tokens that a partial step computes.
        threshold: instead of `keep_ratio`: tokens are computed whose score, a squared distance, is at least this share
            of the mean squared norm of the tokens. At 0 every token is computed.
        bucket: counts of computed tokens are rounded up to a multiple of this.
        min_static_ratio: with a smaller share of static tokens a step is computed whole.
        static_kv: static tokens stay in sight of the others by their last keys and values (`reuse`), or do not
            (`drop`, the paper's).
        balance: sequence-parallel ranks must compute equally many tokens. `pad`: each computes as many of its own as
            the rank with the most needs. `reshard`: rows move between ranks, so that no rank computes more than its
            part, at two more messages per block.
    """

    when: Literal["significant", "scheduled"] = "significant"
    score: Literal["predicted_change", "input_change"] = "predicted_change"
    keep_ratio: float | None = Field(None, gt=0, le=1)
    threshold: float | None = Field(None, ge=0, allow_inf_nan=False)
    bucket: int = Field(16, ge=1)
    min_static_ratio: float = Field(0.1, ge=0, lt=1)
    static_kv: Literal["reuse", "drop"] = "reuse"
    balance: Literal["pad", "reshard"] = "pad"

    @model_validator(mode="after")
    def _one_measure(self) -> TokensConfig:
        if (self.keep_ratio is None) == (self.threshold is None):
            raise ValueError("give exactly one of keep_ratio and threshold")
        return self
