"""Draw what one run of the campaign does, from nothing but a seed and a number."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

U2, RING2, TP2 = {"ulysses_degree": 2}, {"ring_degree": 2}, {"tensor_parallel_degree": 2}
PP2, CFG2 = {"pipefusion_parallel_degree": 2}, {"use_cfg_parallel": True}
LAYOUTS = {
    "pixart": [{}, U2, RING2, CFG2, PP2, {**U2, **CFG2}, {**U2, **PP2}, {**PP2, **CFG2}],
    "pixart_sigma": [{}, U2, CFG2, PP2],
    "sd3": [{}, U2, CFG2, PP2, {**U2, **CFG2}, {**U2, **PP2}],
    "flux": [{}, U2, RING2, TP2, PP2, {**TP2, **U2}, {**U2, **PP2}],
    "wan": [{}, U2, RING2, {**U2, **RING2}],
}
TOKENS = ("pixart", "sd3", "flux")  # families whose entries say how to compute a part of the tokens
FAULTS = ["none", "exception", "nan", "slow rank", "paused rank", "other config", "wrong ledger"]
KILL_SHARE = 0.05  # of the runs on ranks: the next one starts them anew
JOB_LAYOUTS = {
    "one": (1, ()),
    "u2": (2, ("--ulysses_degree", "2")),
    "cfg2": (2, ("--use_cfg_parallel",)),
    "pp2": (2, ("--pipefusion_parallel_degree", "2")),
    "dp2": (2, ("--data_parallel_degree", "2")),
}
JOB_FAULTS = [
    "none",
    "killed rank",
    "killed launcher",
    "asked to stop",
    "paused rank",
    "exception",
    "nan",
    "full disk",
    "cut database",
    "cut image",
]
JOB_SHARE = 0.25  # of the runs; a job starts its ranks anew


@dataclass(frozen=True)
class Run:
    """One run: `requests` on ranks that are kept for many runs (`case`), or a batch job with ranks of its own."""

    seed: int
    number: int
    kind: str
    ranks: int
    fault: str
    case: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What it does, in one line."""
        layout = self.case.get("degrees", self.case.get("layout"))
        about = [self.case.get("family", "batch"), layout or "one process", self.fault, self.case.get("config", "")]
        return f"{self.number} {self.kind} on {self.ranks}: {', '.join(str(part) for part in about if part)}"


def draw(seed: int, number: int) -> Run:
    """Return run `number` of a campaign; the same numbers give the same run."""
    rng = random.Random(f"{seed} {number}")
    if rng.random() < JOB_SHARE:
        return _job(rng, seed, number)
    family = rng.choice(list(LAYOUTS))
    # runs that follow each other share their ranks: ten on two, then ten on four
    ranks = 2 if number // 10 % 2 == 0 else 4
    degrees = rng.choice([degrees for degrees in LAYOUTS[family] if _size(degrees) <= ranks])
    config = _config(rng, family, degrees)
    fault = rng.choice([fault for fault in FAULTS if _possible(fault, family, degrees, config)])
    fault = "killed rank" if rng.random() < KILL_SHARE else fault
    requests = [_request(rng, seed=seed) for seed in (1, 2)]
    case = {"family": family, "degrees": degrees, "config": config, "requests": requests, "fault": fault}
    return Run(seed, number, "requests", ranks, fault, case)


def _job(rng: random.Random, seed: int, number: int) -> Run:
    layout = rng.choice(list(JOB_LAYOUTS))
    fault = rng.choice([fault for fault in JOB_FAULTS if layout != "one" or fault != "killed launcher"])
    case = {"layout": layout, "after": rng.randint(0, 4), "victim": rng.randint(0, JOB_LAYOUTS[layout][0] - 1)}
    return Run(seed, number, "job", JOB_LAYOUTS[layout][0], fault, case)


def _size(degrees: dict[str, Any]) -> int:
    size = 1
    for name, degree in degrees.items():
        size *= 2 if name == "use_cfg_parallel" else degree
    return size


def _possible(fault: str, family: str, degrees: dict[str, Any], config: dict[str, Any]) -> bool:
    stages = "pipefusion_parallel_degree" in degrees
    if fault in ("exception", "slow rank"):
        return not stages  # xDiT refuses callbacks there, or calls them on the last stage alone
    if fault == "nan":
        return family != "wan" and not stages and config.get("test") != "paper"  # no latents can be given to it
    if fault == "other config":
        return _size(degrees) > 1
    if fault == "wrong ledger":
        return _size(degrees) > 1 and config.get("test") == "paper" and not stages
    return True


def _request(rng: random.Random, seed: int) -> dict[str, Any]:
    guidance = rng.choice([1.5, 3.5, 6.0])
    pixels, batch = rng.choice([128, 128, 192]), rng.choice([1, 1, 2])
    return {"steps": rng.randint(5, 10), "guidance": guidance, "seed": seed, "pixels": pixels, "batch": batch}


def _config(rng: random.Random, family: str, degrees: dict[str, Any]) -> dict[str, Any]:
    kinds = [_planned, _planned, _tested, _tested, _scheduled]
    kinds += [_partial] if family in TOKENS else []
    config: dict[str, Any] = rng.choice(kinds)(rng)
    if "pipefusion_parallel_degree" in degrees and config.get("granularity", "step") not in ("output", "step"):
        config["pp_decision"] = "stage"
    return config


def _planned(rng: random.Random) -> dict[str, Any]:
    goal = rng.choice([{"budget": 0.3}, {"budget": 0.5}, {"budget": 0.7}, {"speedup": 2.5}, {"psnr": 30}])
    return {**goal, "learn": rng.choice([0, 0, 2])}


def _tested(rng: random.Random) -> dict[str, Any]:
    return {
        "test": "paper",
        "granularity": rng.choice(["step", "step", "group", "block"]),
        "groups": rng.choice([2, 3]),
        "lead_blocks": rng.choice([1, 1, 2]),
        "stand_in": rng.choice(["reuse", "history", "delta", "delta+history", "taylor2"]),
        "error_budget": rng.choice([0.03, 0.06, 0.2, 1.0]),
        "max_consecutive_skips": rng.choice([1, 3, 9]),
        "sync": rng.choice(["step", "block", "ahead"]),
        "cfg_agreement": rng.random() < 0.7,
        "pp_decision": rng.choice(["leader", "stage"]),
        "verify_every": rng.choice([0, 0, 1]),
    }


def _scheduled(rng: random.Random) -> dict[str, Any]:
    steps = rng.randint(5, 10)
    mask = "1" + "".join(rng.choice("01") for _ in range(steps - 1))
    lead = rng.choice([0, 1])
    return {"schedule": {steps: mask}, "stand_in": rng.choice(["reuse", "history", "taylor2"]), "lead_blocks": lead}


def _partial(rng: random.Random) -> dict[str, Any]:
    measure = rng.choice([{"keep_ratio": 0.25}, {"keep_ratio": 0.5}, {"threshold": 0.5}, {"merge_ratio": 0.5}])
    balance, kept = rng.choice(["pad", "reshard"]), rng.choice(["reuse", "forecast", "drop"])
    more = {} if "merge_ratio" in measure else {"balance": balance, "static_kv": kept}
    return {"test": "paper", "error_budget": 0.06, "tokens": {**measure, "bucket": 4, **more}}
