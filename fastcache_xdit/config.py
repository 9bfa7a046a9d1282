"""The one configuration of FastCache: frozen, self-checking, and without side effects."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class FastCacheConfig(BaseModel):
    """How FastCache decides and what stands in for a skipped block (arXiv 2505.20353).

    All options are keyword-only; an unknown one is an error that names the nearest known option.

    Attributes:
        granularity: one decision for the whole stack after the lead blocks (`step`), for each of `groups` consecutive
            groups of blocks (`group`), or for each block (`block`, the paper's).
        groups: number of groups for `granularity: group`.
        lead_blocks: blocks at the start of the model that are always computed; the change that they show drives the
            decision. Blocks of later PipeFusion stages never count as lead blocks.
        stand_in: what replaces a skipped block: `reuse` adds the residual of the last computed step, `history`
            extrapolates it from the last two (order-1 finite differences).
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
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    granularity: Literal["step", "group", "block"] = "step"
    groups: int = Field(4, ge=1)
    lead_blocks: int = Field(1, ge=0)
    stand_in: Literal["reuse", "history"] = "history"
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

    @model_validator(mode="before")
    @classmethod
    def _known_options(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(unknown_option(name, cls.model_fields))
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FastCacheConfig:
        """Build from a plain dict.

        Raises:
            ValueError: in one line: the option, what was given, and what is allowed.
        """
        if not isinstance(values, dict):
            raise ValueError(f"a FastCache config is a mapping of options, not {type(values).__name__}: {values!r}")
        try:
            return cls(**values)
        except ValidationError as error:
            raise ValueError(_one_line(error)) from None

    @classmethod
    def from_json(cls, text: str) -> FastCacheConfig:
        """Build from a JSON object; errors as in `from_dict`."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(f"the FastCache config is not valid JSON ({error}): {text!r}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> FastCacheConfig:
        """Build from a YAML or JSON file.

        Raises:
            ValueError: no such file, not YAML, or an option as in `from_dict`; the message names the file.
        """
        try:
            return cls.from_dict(read_yaml(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None

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
    """The mapping in a YAML (or JSON) file; an empty file is an empty one. Raises ValueError that names the file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such config file: {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return {} if values is None else values


def unknown_option(name: str, known: Any) -> str:
    """The sentence for an option that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known options: {', '.join(known)}"
    return f"unknown option {name!r}; {hint}"


def _one_line(error: ValidationError) -> str:
    return "; ".join(_sentence(item) for item in error.errors(include_url=False))


def _sentence(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return message
    return f"option {'.'.join(map(str, item['loc']))!r}: {message[0].lower()}{message[1:]}, not {item['input']!r}"
