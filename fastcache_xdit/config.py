"""The configuration of FastCache: frozen, self-checking, and without side effects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fastcache_xdit.errors import UsageError
from fastcache_xdit.goal import GOALS, Goal
from fastcache_xdit.options import SCHEDULE_DECIDES, Options, TokensConfig, unknown_option, usage_error
from fastcache_xdit.reading import Readable
from fastcache_xdit.shipped import SHIPPED, calibration_path, presets


class FastCacheConfig(Readable, Options):
    """Options of FastCache: when blocks are skipped, and what replaces them (arXiv 2505.20353).

    One goal is enough: `budget`, `speedup` or `psnr`; without any it is `budget: 0.5`. The other options are for those
    who want to decide more themselves.

    Attributes:
        budget: largest share of the steps that are computed, of which at least one is.
        speedup: factor in wall time. Until requests have been timed, a share of 1/speedup is computed.
        psnr: mean PSNR in dB against uncached pictures of the requests that were learnt from; half of the steps before.
        learn: number of requests that are computed in full and recorded, to plan and fit the next ones by. 0 learns
            nothing: what the folder of learnt calibrations has of this model is used, or the pooled plan.
        guard_every: interval of requests at which one is computed in full as well; 3 dB below the promise, the model is
            learnt again. 0 never looks.
        check: relative error of the stand-in, norm(error) / norm(output), at the last computed step and for the worst
            picture of the batch, above which the next planned skip is computed instead. 0 measures nothing. It needs a
            scheduler, and is refused under PipeFusion, where the last stage alone sees outputs.
        granularity: what one decision covers: the whole transformer, whose output is then estimated (`output`, which
            works with every denoiser), all blocks after the lead blocks (`step`), one of `groups` groups of consecutive
            blocks (`group`), or one block (`block`, as in the paper). The default without `test: plan` is `step`.
        groups: number of groups with `granularity: group`.
        lead_blocks: number of blocks at the start of the model that are always computed. The change of the hidden
            states behind them drives the decision. Blocks of later PipeFusion stages never count as lead blocks.
        stand_in: how the output of skipped blocks is estimated from their input H. R1, R2, R3 are the residuals (output
            minus input) of the last computed steps, newest first, and H1 is the input of the newest. `reuse` adds R1 to
            H, `history` a weighted sum of R1, R2 and R3, `delta` R1 + (A - I)(H - H1), `delta+history` both kinds of
            terms, and `taylor2` the parabola through R1, R2 and R3; `affine` is W H + b, as in the paper. `calibration`
            provides the weights. Without one, `history` and `delta+history` follow the straight line through R1 and R2,
            `delta` equals `reuse`, and `affine` is refused.
        affine_rank: rank of the matrix that `affine` adds to its per-channel weights: W = diagonal + low rank. 0 keeps
            the diagonal alone; the width of the model or more gives a full matrix. Above 0 the calibration must have
            been made with `--maps`.
        calibration: path of a file that `fastcache-xdit calibrate` wrote, or a shipped model's name. In a config file,
            a relative path starts from the folder of that file.
        allow_adapters: accept a calibration that was made without the LoRA adapters that are now loaded or fused, or
            with other ones.
        schedule: which steps are computed, as one mask for each number of steps, such as `{20: "1110p001..."}`: 1 is a
            computed step, p a partial one (see `tokens`), 0 one that may be skipped. For another number of steps the
            nearest mask is stretched; with `granularity: output` a mask is planned that computes as large a share. A
            step is skipped only if both the schedule and the test allow it.
        test: the rule for when a step may be skipped. `plan`, the default without a schedule, skips what costs least
            for the goal. `calibrated` is the chi-squared test of the calibration, with `alpha` and `tolerance`. `paper`
            is the literal rule of arXiv 2505.20353, for comparison only: it accepts every change below 100 %. `none`
            leaves the decision to the schedule and needs no messages between ranks; with `lead_blocks: 0` the last
            PipeFusion stage then runs the skipped steps alone.
        alpha: significance level of `calibrated` and `paper`: the fraction of steps exactly at the tolerance that are
            computed anyway. A smaller value skips more.
        tolerance: relative error of the final latents that `calibrated` allows one skip to cause.
        error_budget: upper bound on the sum of predicted errors since the last computed step, older ones decayed.
        error_decay: factor, 0 to 1, by which the predicted errors of earlier steps fade in that sum at each step (the
            paper's rho).
        warmup_steps: number of steps at the start of a request that are always computed.
        cooldown_steps: number of steps at the end of a request that are always computed.
        max_consecutive_skips: largest number of steps skipped in a row.
        sync: `step` exchanges one message per step and patch for all decisions, `block` one message per decision.
            `ahead` exchanges it while the step computes, and decides the next one by it, so that nobody waits. It
            takes the states to go on moving as they did; ranks that diverge are told apart a step later.
        cfg_agreement: make the ranks of CFG parallelism decide together, so that they skip what one process would.
        pp_decision: under PipeFusion, either the first stage decides for all (`leader`, with `granularity: step`), or
            every stage decides for itself (`stage`), so that keys and values may be stale at different steps.
        verify_every: interval, in steps, at which ranks confirm their decisions in an extra message before they act on
            them. 0 never does; a digest still travels with every decision, at no extra message.
        tokens: partial steps, in which only some of the tokens are computed; see `TokensConfig`.
        reference_dtype: dtype in which the computed steps that stand-ins look back to are kept: the `model`'s own, or
            `float32` or `bfloat16`, whatever it computes in. Sums of them are taken in float32 at least.
        memory_budget: bytes, or up to 1 the share of the device's memory, that states of blocks may take on a rank, for
            which the first request is computed in full. Where they take more, the output is stood in for instead.
    """

    budget: Annotated[float, Field(gt=0, le=1)] | None = None
    speedup: Annotated[float, Field(gt=1, lt=100)] | None = None
    psnr: Annotated[float, Field(gt=0, lt=100)] | None = None
    learn: int = Field(4, ge=0)
    guard_every: int = Field(0, ge=0)
    check: float = Field(0.0, ge=0, allow_inf_nan=False)
    granularity: Literal["output", "step", "group", "block"] = "output"
    groups: int = Field(4, ge=1)
    lead_blocks: int = Field(1, ge=0)
    stand_in: Literal["reuse", "history", "taylor2", "affine", "delta", "delta+history"] = "history"
    affine_rank: int = Field(0, ge=0)
    calibration: str | None = None
    allow_adapters: bool = False
    schedule: dict[int, str] | None = None
    test: Literal["plan", "calibrated", "paper", "none"] = "plan"
    alpha: float = Field(0.05, gt=0, lt=1)
    tolerance: float = Field(0.02, gt=0, allow_inf_nan=False)
    error_budget: float = Field(0.2, ge=0, allow_inf_nan=False)
    error_decay: float = Field(1.0, ge=0, le=1)
    warmup_steps: int = Field(3, ge=1)
    cooldown_steps: int = Field(1, ge=0)
    max_consecutive_skips: int = Field(3, ge=0)
    sync: Literal["step", "block", "ahead"] = "step"
    cfg_agreement: bool = True
    pp_decision: Literal["leader", "stage"] = "leader"
    verify_every: int = Field(0, ge=0)
    tokens: TokensConfig | None = None
    reference_dtype: Literal["model", "float32", "bfloat16"] = "model"
    memory_budget: Annotated[float, Field(gt=0)] | None = None

    @field_validator("calibration")
    @classmethod
    def _of_shipped_model(cls, calibration: str | None) -> str | None:
        is_name = calibration in SHIPPED and not Path(calibration).exists()
        return str(calibration_path(calibration)) if calibration and is_name else calibration

    @field_validator("schedule", mode="before")
    @classmethod
    def _not_one_mask(cls, schedule: Any) -> Any:
        if isinstance(schedule, str) and schedule and not set(schedule) - {"0", "1", "p"}:
            hint = f"write {{{len(schedule)}: {schedule!r}}}, or use FastCacheConfig.scheduled({schedule!r})"
            raise UsageError(f"a schedule has a mask for each number of steps, not {schedule!r} alone", hint)
        return schedule

    @field_validator("schedule")
    @classmethod
    def _complete_masks(cls, schedule: dict[int, str] | None) -> dict[int, str] | None:
        for num_steps, mask in (schedule or {}).items():
            if len(mask) != num_steps or set(mask) - {"0", "1", "p"} or not mask.startswith("1"):
                allowed = f"{num_steps} characters 0, 1 or p, the first one 1"
                raise UsageError(f"the mask for {num_steps} steps must be {allowed}, not {mask!r}")
        return schedule or None

    @model_validator(mode="before")
    @classmethod
    def _by_default(cls, values: Any) -> Any:
        """A schedule decides alone where no test is named; blocks are skipped where nothing is planned."""
        if not isinstance(values, dict):
            return values
        if values.get("test") == "online" or "threshold" in values or "window" in values:
            problem = "test 'online', with threshold and window, was replaced by test 'plan'"
            raise UsageError(problem, "set budget, speedup or psnr, and check to bound the error of each request")
        test = values.get("test") or ("none" if values.get("schedule") else "plan")
        return {"granularity": "output" if test == "plan" else "step", **values, "test": test}

    @property
    def goal(self) -> Goal:
        """What is asked for."""
        return next((Goal(kind, value) for kind in GOALS if (value := getattr(self, kind)) is not None), Goal())

    @model_validator(mode="after")
    def _one_goal(self) -> FastCacheConfig:
        goals = [kind for kind in GOALS if getattr(self, kind) is not None]
        if len(goals) > 1:
            raise UsageError(f"{' and '.join(goals)} are both given", "give one goal")
        planned = [*goals, "check"] if self.check else goals
        if planned and self.test != "plan":
            raise UsageError(f"{planned[0]} belongs to test 'plan', not to {self.test!r}", "leave one of them away")
        if self.memory_budget and self.granularity == "output":
            raise UsageError("memory_budget is for the states of blocks; a plan keeps none", "leave it away")
        if (self.granularity == "output") != (self.test == "plan") and self.test != "none":
            raise UsageError(f"granularity {self.granularity!r} does not go with test {self.test!r}", self._needed)
        return self

    @property
    def _needed(self) -> str:
        """What makes this granularity work."""
        if self.granularity == "output":
            return "'output' needs test 'plan', or a schedule alone"
        return "give a schedule, such as {20: '1110...'}, test 'paper', or test 'calibrated' with a calibration"

    @model_validator(mode="after")
    def _consistent(self) -> FastCacheConfig:
        if self.test == "none" and not self.schedule:
            raise UsageError("test 'none' leaves every decision to a schedule", "give schedule, or another test")
        if self.calibration is None and (self.test == "calibrated" or self.stand_in == "affine"):
            option = "test 'calibrated'" if self.test == "calibrated" else "stand_in 'affine'"
            raise UsageError(f"{option} needs a calibration file", "make one with fastcache-xdit calibrate")
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

    if not TYPE_CHECKING:  # for type checkers, the signature that pydantic makes of the options

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise usage_error(error) from None

    @classmethod
    def scheduled(cls, masks: str | Mapping[int, str], **options: Any) -> FastCacheConfig:
        """Build a config in which the schedule alone decides, without a test and without limits on skipping.

        Args:
            masks: one mask, such as `"11010010"`, or a mask for each number of steps.
            options: other options, such as `stand_in`, `calibration` and `lead_blocks`.
        Raises:
            UsageError: as in `from_dict`.
        """
        if not isinstance(masks, str | Mapping):
            raise UsageError(f"masks are a text such as '1010', or a text for each number of steps, not {masks!r}")
        schedule = {len(masks): masks} if isinstance(masks, str) else dict(masks)
        return cls.from_dict({**SCHEDULE_DECIDES, "schedule": schedule, **options})

    @classmethod
    def preset(cls, model: str, name: str) -> FastCacheConfig:
        """Read a config that was tuned for a shipped model, such as `third` of `shapes-flux`.

        Raises:
            UsageError: this is no clone of the repository, or there is no such model or preset.
        """
        paths = presets(model)
        if name not in paths:
            error = unknown_option(name, paths, f"it has {', '.join(paths)}")
            raise UsageError(f"{model} has no preset {name!r}", error.advice)
        return cls.from_file(paths[name])

    def to_dict(self) -> dict[str, Any]:
        """Return all options as plain values, ready for YAML or JSON."""
        return self.model_dump()
