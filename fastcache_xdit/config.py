"""The one configuration of FastCache: frozen, self-checking, and without side effects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from fastcache_xdit.errors import UsageError
from fastcache_xdit.options import Options, TokensConfig


class FastCacheConfig(Options):
    """How FastCache decides and what stands in for a skipped block (arXiv 2505.20353).

    All options are keyword-only; an unknown one is an error that names the nearest known option.

    Attributes:
        granularity: one decision for the whole stack after the lead blocks (`step`), for each of `groups` consecutive
            groups of blocks (`group`), or for each block (`block`, the paper's).
        groups: number of groups for `granularity: group`.
        lead_blocks: blocks at the start of the model that are always computed; the change that they show drives the
            decision. Blocks of later PipeFusion stages never count as lead blocks.
        stand_in: what replaces a skipped block, given H on entry and residuals R = H[out] - H[in] of computed steps:
            `reuse` R1, `history` a weighted sum of R1, R2, R3, `delta` R1 + (A - I)(H - H1), `delta+history` both,
            `affine` the paper's W H + b, `taylor2` the parabola through three. Weights come from `calibration`; without
            one, `history` is the straight line through two residuals, `delta` is `reuse`, and `affine` is refused.
        affine_rank: of what `affine` adds to its diagonal, W = diag + low rank; the model's width or more: whole. Above
            0 it needs a calibration that was made with `--maps`.
        calibration: file that `fastcache-xdit calibrate` wrote, or the name of a shipped model; a relative path in a
            config file starts from that file's folder.
        allow_adapters: take a calibration that was made without the LoRA that is loaded or fused now, or with another.
        schedule: for a number of steps, which of them are computed: `{20: "1110p001..."}`, 1 for computed, p for a
            partial step (`tokens`). Another number of steps takes the nearest mask, stretched. A step is skipped where
            schedule and test both allow it.
        test: when a change is insignificant: `online` compares the error predicted from this request's computed steps
            with `threshold`; `calibrated` is the chi-squared test of the calibration, with `alpha` and `tolerance`;
            `paper` is the literal rule of arXiv 2505.20353, vacuous, because it passes every change below 100 %;
            `none` leaves the decision to the schedule, at no message between ranks; with `lead_blocks: 0` the last
            PipeFusion stage then takes skipped steps alone, ahead of the other patches.
        alpha: significance level of `calibrated` and `paper`: the share of steps at the tolerance that are computed all
            the same; a smaller one skips more.
        tolerance: relative error of the final latents that `calibrated` lets one skip cause.
        threshold: relative error, norm(error) / norm(output), that one skip may be predicted to cause. 0 skips nothing.
        error_budget: bound on the decayed sum of predicted errors since the last computed step.
        error_decay: factor by which an older predicted error still counts in that sum (the paper's rho), 0 to 1.
        warmup_steps: first steps of a request, always computed.
        cooldown_steps: last steps of a request, always computed.
        max_consecutive_skips: longest run of skipped steps.
        window: how many observed (change, error) pairs the online error model keeps; this is the uncalibrated stand-in
            for a calibrated null variance.
        sync: `step` exchanges one message per step and patch for all decisions, `block` one per decision.
        cfg_agreement: CFG-parallel ranks decide together, so that they equal a single process.
        pp_decision: under PipeFusion the first stage is the `leader` of all (granularity `step`), or each `stage`
            decides for itself, which lets keys and values grow stale at different steps.
        verify_every: every so many steps ranks confirm their decisions with one more message before they act
            (0: never; digests still travel with every decision, at no extra message).
        tokens: partial steps, in which only some tokens are computed; see `TokensConfig`.
    """

    granularity: Literal["step", "group", "block"] = "step"
    groups: int = Field(4, ge=1)
    lead_blocks: int = Field(1, ge=0)
    stand_in: Literal["reuse", "history", "taylor2", "affine", "delta", "delta+history"] = "history"
    affine_rank: int = Field(0, ge=0)
    calibration: str | None = None
    allow_adapters: bool = False
    schedule: dict[int, str] | None = None
    test: Literal["online", "calibrated", "paper", "none"] = "online"
    alpha: float = Field(0.05, gt=0, lt=1)
    tolerance: float = Field(0.02, gt=0, allow_inf_nan=False)
    threshold: float = Field(0.1, ge=0, allow_inf_nan=False)
    error_budget: float = Field(0.2, ge=0, allow_inf_nan=False)
    error_decay: float = Field(1.0, ge=0, le=1)
    warmup_steps: int = Field(3, ge=1)
    cooldown_steps: int = Field(1, ge=0)
    max_consecutive_skips: int = Field(3, ge=0)
    window: int = Field(4, ge=1)
    sync: Literal["step", "block"] = "step"
    cfg_agreement: bool = True
    pp_decision: Literal["leader", "stage"] = "leader"
    verify_every: int = Field(0, ge=0)
    tokens: TokensConfig | None = None

    @field_validator("schedule")
    @classmethod
    def _whole_masks(cls, schedule: dict[int, str] | None) -> dict[int, str] | None:
        for steps, mask in (schedule or {}).items():
            if len(mask) != steps or set(mask) - {"0", "1", "p"} or not mask.startswith("1"):
                raise UsageError(
                    f"the mask for {steps} steps must be {steps} characters 0, 1 or p, the first one 1, not {mask!r}"
                )
        return schedule or None

    @model_validator(mode="after")
    def _possible(self) -> FastCacheConfig:
        if self.test == "none" and not self.schedule:
            raise UsageError("test 'none' leaves every decision to a schedule", "give schedule, or another test")
        if self.calibration is None and (self.test == "calibrated" or self.stand_in == "affine"):
            what = "test 'calibrated'" if self.test == "calibrated" else "stand_in 'affine'"
            raise UsageError(f"{what} needs a calibration file", "make one with fastcache-xdit calibrate")
        if self.calibration is not None and self.stand_in in ("reuse", "taylor2"):
            raise UsageError(f"stand_in {self.stand_in!r} is never fitted", "leave calibration away, or use history")
        return self

    @model_validator(mode="after")
    def _partial_steps(self) -> FastCacheConfig:
        marked = any("p" in mask for mask in (self.schedule or {}).values())
        if marked and self.tokens is None:
            raise UsageError("the schedule has partial steps (p)", "give tokens, such as tokens: {keep_ratio: 0.25}")
        if self.tokens is None:
            return self
        if not marked and (self.test == "none" or self.tokens.when == "scheduled"):
            raise UsageError("tokens have no step to be used at", "mark steps of the schedule p, or use a test")
        if self.granularity != "step":
            raise UsageError(f"tokens with granularity={self.granularity} is not supported", "set granularity: step")
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FastCacheConfig:
        """Build from a plain dict.

        Raises:
            UsageError: in one line: the option, what was given, and what is allowed.
        """
        if not isinstance(values, dict):
            raise UsageError(f"a FastCache config is a mapping of options, not {type(values).__name__}: {values!r}")
        try:
            return cls(**values)
        except ValidationError as error:
            raise usage_error(error) from None

    @classmethod
    def from_json(cls, text: str) -> FastCacheConfig:
        """Build from a JSON object; errors as in `from_dict`."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise UsageError(f"the FastCache config is not valid JSON ({error}): {text!r}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> FastCacheConfig:
        """Build from a YAML or JSON file.

        Raises:
            UsageError: no such file, not YAML, or an option as in `from_dict`; the message names the file.
        """
        values = _beside(Path(path).parent, read_yaml(path))
        try:
            return cls.from_dict(values)
        except UsageError as error:
            raise error.of(path) from None

    @classmethod
    def from_text(cls, text: str | None) -> FastCacheConfig:
        """Build from what a command line holds: a JSON object, the path of a file, or nothing (the defaults)."""
        if not text:
            return cls()
        return cls.from_json(text) if text.lstrip().startswith("{") else cls.from_file(text)

    def to_dict(self) -> dict[str, Any]:
        """All options as plain values, ready for YAML or JSON."""
        return self.model_dump()


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML (or JSON) file; an empty file is an empty one. Raises UsageError that names the file."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"no such config file: {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return {} if values is None else values


def _beside(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """A calibration that lies where the config file says it does."""
    name = values.get("calibration") if isinstance(values, dict) else None
    if isinstance(name, str) and (folder / name).is_file():
        return values | {"calibration": str(folder / name)}
    return values


def usage_error(error: ValidationError) -> UsageError:
    """Turn what pydantic found wrong into a user's mistake: which options, what is allowed, what was given."""
    mistakes = [_mistake(item) for item in error.errors(include_url=False)]
    return mistakes[0] if len(mistakes) == 1 else UsageError("; ".join(map(str, mistakes)))


def _mistake(item: Any) -> UsageError:
    raised: UsageError = item.get("ctx", {}).get("error", UsageError(item["msg"]))  # our validators raise a UsageError
    if not item["loc"]:
        return raised
    problem = f"option {'.'.join(map(str, item['loc']))!r}: {raised.problem[0].lower()}{raised.problem[1:]}"
    given = f", not {item['input']!r}"
    return UsageError(problem, raised.advice + given) if raised.advice else UsageError(problem + given)
