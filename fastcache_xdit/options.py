"""The base class of all options, how their errors are worded, and the options of partial steps."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fastcache_xdit.errors import UsageError, quoted

# Options that let the schedule alone decide: no hard limit keeps a step from being skipped.
SCHEDULE_DECIDES = {
    "test": "none",
    "warmup_steps": 1,
    "cooldown_steps": 0,
    "max_consecutive_skips": 1000,
    "error_budget": 1e9,
}


class Options(BaseModel):
    """Base of all options: frozen and keyword-only; an unknown option is an error that names the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_options(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise unknown_option(name, cls.model_fields)
        return values


def changed(options: Options) -> dict[str, Any]:
    """Return the options that are set to something else than their defaults, by name."""
    fields, values = type(options).model_fields, options.model_dump()
    return {name: value for name, value in values.items() if getattr(options, name) != fields[name].default}


def meanings(kind: type[Options]) -> dict[str, str]:
    """Return what each option means: the first sentence that the docstring says of it."""
    text = re.sub(r"\s*\n {12}", " ", kind.__doc__ or "")
    return {name: sentence for name, sentence in re.findall(r"^ {8}(\w+): (.+?\.)(?:\s|$)", text, re.M)}


def unknown_option(name: str, options: Iterable[str], otherwise: str = "") -> UsageError:
    """Make the error for an option that is not among `options`; it suggests the nearest one.

    Without one that is near, its advice is `otherwise`, or the list of them all.
    """
    options = list(options)
    misspelt = difflib.get_close_matches(name, options, n=1, cutoff=0.9)
    longer = [each for each in options if name.startswith(f"{each}_") or name.endswith(f"_{each}")]  # mask_image: mask
    nearest = misspelt or sorted(longer, key=name.find) or difflib.get_close_matches(name, options, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else otherwise or f"known options: {', '.join(options)}"
    return UsageError(f"unknown option {name!r}", hint)


def usage_error(error: ValidationError) -> UsageError:
    """Turn what pydantic found wrong into a user's mistake: which options, what is allowed, what was given."""
    mistakes = [_mistake(item) for item in error.errors(include_url=False)]
    return mistakes[0] if len(mistakes) == 1 else UsageError("; ".join(map(str, mistakes)))


def _mistake(item: Any) -> UsageError:
    given = item.get("ctx", {}).get("error")
    ours = isinstance(given, UsageError)  # as our validators raise, and that says what was given
    raised = given if ours else UsageError(item["msg"])
    if not item["loc"]:
        return raised
    problem = f"option {'.'.join(map(str, item['loc']))!r}: {raised.problem[0].lower()}{raised.problem[1:]}"
    return UsageError(problem if ours else f"{problem}, not {quoted(item['input'])}", raised.advice)


Ratio = Annotated[float, Field(gt=0, le=1)]


class TokensConfig(Options):
    """Options of partial steps, in which only some of the tokens are computed, or all of them merged to fewer.

    Tokens that are not computed are called static and take the output of the stand-in. Exactly one of `keep_ratio`,
    `threshold`, `merge_ratio` and `score: region` determines how many tokens are computed.

    Attributes:
        when: which steps are partial. `scheduled`: those that the schedule marks `p`. `significant`: also those that
            would be skipped if their change were not significant.
        score: what tokens are ranked by. `predicted_change`: the distance between the stand-in's output for a token and
            the token's output at the last fully computed step. `input_change`: how far the input of a token has moved
            since then, as in the paper. `region`: no ranking; the tokens that an edit may change are computed, which
            `handle.focus(mask)` names.
        keep_ratio: fraction of the image tokens that a partial step computes.
        threshold: instead of `keep_ratio`, compute the tokens whose score, a squared distance, is at least this
            fraction of the mean squared norm of the tokens. At 0 every token is computed.
        merge_ratio: instead of `keep_ratio`, merge similar tokens of a window before the blocks and unmerge them behind
            the blocks; this fraction of the tokens remains. No token is static, and attention sees the keys and values
            of the merged tokens. A list merges repeatedly: each ratio applies to the tokens that the one before left,
            so that later windows cover a larger part of the image.
        merge_window: number of consecutive tokens of one rank among which tokens are merged.
        merge_neighbours: number of nearest tokens of the window from which the density around a token is computed.
        merge_temporal_weight: weight of a token's change since the last fully computed step in its importance for
            merging.
        bucket: the number of computed tokens is rounded up to a multiple of this.
        min_static_ratio: compute a step fully if fewer than this fraction of its tokens would be static.
        costs: relative times that `fastcache-xdit bench costs` measured for this model on these machines: for some
            fractions of computed tokens, the time of a partial step over that of a full one. Other fractions are
            interpolated. A step whose relative time is 1 or more is computed fully.
        static_kv: the keys and values through which computed tokens attend to static ones: those of the last step at
            which they were computed (`reuse`), an extrapolation with calibrated weights from the last three full steps
            (`forecast`, which stores all three), or none (`drop`, as in the paper).
        blend: weight g of motion-aware blending: the output of a static token is g times the stand-in plus (1 - g)
            times its mean output over the full steps of this request. 1 uses the stand-in alone.
        balance: how sequence-parallel ranks, which must compute equally many tokens, reach the same number. `pad`: each
            computes as many of its own tokens as the rank that needs the most. `reshard`: tokens move between ranks so
            that each computes an equal part, at two more messages per block.
    """

    when: Literal["significant", "scheduled"] = "significant"
    score: Literal["predicted_change", "input_change", "region"] = "predicted_change"
    keep_ratio: float | None = Field(None, gt=0, le=1)
    threshold: float | None = Field(None, ge=0, allow_inf_nan=False)
    merge_ratio: Ratio | tuple[Ratio, ...] | None = None
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
    def _valid_costs(cls, costs: dict[float, float] | None) -> dict[float, float] | None:
        if costs is not None and not (costs and all(0 < tokens <= 1 and time > 0 for tokens, time in costs.items())):
            allowed = "costs map fractions of tokens, 0 to 1, to relative times, as in {0.25: 0.4}"
            raise UsageError(f"{allowed}; not {costs}")
        return costs

    def pays(self, fraction: float) -> bool:
        """Return whether a partial step that computes this fraction of the tokens saves time over a full one."""
        if fraction >= 1 or 1 - fraction < self.min_static_ratio - 1e-9:
            return False
        if self.costs is None:
            return True
        measured = sorted(self.costs)
        return bool(np.interp(fraction, measured, [self.costs[point] for point in measured]) < 1)

    @model_validator(mode="after")
    def _merged_alone(self) -> TokensConfig:
        for name in ("score", "static_kv", "balance", "blend"):
            if self.merge_ratio is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise UsageError(
                    f"{name}={getattr(self, name)} has no meaning with merge_ratio, which keeps no token static"
                )
        return self
