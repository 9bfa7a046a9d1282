"""Calibration and tuning of any pipeline or loop, from Python; the commands are thin layers over this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_file
from fastcache_xdit.host.xdit import world
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.tuning.calibrate import Calibrator, ReportPart
from fastcache_xdit.tuning.calls import Call, LoopCall, calls_of
from fastcache_xdit.tuning.coverage import HELD_OUT_EVERY, UNCALIBRATED, Coverage
from fastcache_xdit.tuning.outputs import Skips, better
from fastcache_xdit.tuning.polish import Polisher
from fastcache_xdit.tuning.refit import Refitter
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.tuning.search import Search
from fastcache_xdit.tuning.targets import ReportLine, Target, find
from fastcache_xdit.tuning.tuned import Tuned

NEVER_SKIPS = 10**6  # warm-up steps: more than a request has


def calibrate(
    pipe: Any,
    calls: Sequence[Any],
    *,
    output: str | Path | None = None,
    lead_blocks: Sequence[int] = (0, 1),
    granularity: str = "step",
    groups: int = 4,
    maps: bool = False,
    stages: Sequence[int] = (),
    sigmas: Sequence[float] | None = None,
    facts: dict[str, Any] | None = None,
    report: ReportPart | None = None,
) -> Calibration:
    """Measure a model on calls of its own kind, so that stand-ins are fitted to it; under xDiT every rank calls this.

    Args:
        pipe: a diffusers or xDiT pipeline, or a transformer in a loop of your own.
        calls: at least three, of one number of steps and one size. Each is a dict of keyword arguments of `pipe`, in
            which several prompts are a batch; or a function that runs a loop around the transformer and returns the
            final latents [B, ...]. The function takes `branch`: where guidance calls the transformer twice at a step,
            `with branch("uncond"): ...` names the calls. Each call is run many times, always from the same noise: that
            of its generators as they are now, or of its number in the list, with which torch is seeded as well.
        output: file to write, which an interrupted calibration continues; None to write none.
        lead_blocks: numbers of lead blocks to serve.
        granularity: to serve beside `step`: `group` or `block`.
        groups: number of groups with `granularity: group`.
        maps: also fit matrices, for `stand_in: affine` with an `affine_rank`.
        stages: PipeFusion degrees to serve where each stage skips for itself.
        sigmas: noise level of each step, 1 to 0, for loops around a transformer without a scheduler.
        facts: values for JSON that are kept in the file, and tell an interrupted calibration from another.
        report: called after each part with its name, the number of parts done and of all.
    Returns:
        The calibration, for `fastcache(..., calibration=...)` or `tune`.
    Raises:
        UsageError: the model is unknown, the layout has stages or tensor parallelism, calls are too few or have too few
            steps, or nothing says how many they have.
    """
    runner, prepared = _prepared(pipe, calls, sigmas)
    _check_layout(runner.host.topology)
    path = writable_file(str(output)) if output else None
    coverage = Coverage(tuple(lead_blocks), tuple(stages), granularity, groups, maps)
    calibrator = Calibrator(runner, prepared, path, coverage, {"calls": len(prepared)} if facts is None else facts)
    calibration = calibrator.run(report or (lambda *_: None))
    if path and world.is_first_rank():
        calibration.save(path)
    return calibration


def tune(
    pipe: Any,
    calls: Sequence[Any],
    *,
    calibration: Calibration | str | Path,
    target: str,
    output: str | Path | None = None,
    steps: Sequence[int] | None = None,
    evaluations: int = 24,
    refit_calls: Sequence[Any] = (),
    polish: int = 0,
    start: FastCacheConfig | None = None,
    lead_blocks: int = 0,
    seed: int = 0,
    sigmas: Sequence[float] | None = None,
    report: ReportLine | None = None,
) -> Tuned:
    """Search for the config that reaches a target with the least error; under xDiT every rank calls this.

    Args:
        pipe, calls, sigmas: as for `calibrate`; a loop is judged by its latents, a pipeline by its pictures.
        calibration: of the model, or its file; a config file needs that one.
        target: `budget=0.4` (share of block FLOPs), `speedup=2.5` (of wall time) or `psnr=34` (mean, in dB).
        output: YAML file to write for `--cache_config` and `FastCacheConfig.from_file`; None to write none.
        steps: values of `num_inference_steps` to tune for; None for that of the calls.
        evaluations: how often all calls are run for each of them, at most.
        refit_calls: at least three, to fit the stand-ins of the found mask on once more, and to learn from them to skip
            whole calls of the model instead of blocks, which is taken where it comes out better; none to leave both.
        polish: then train them on so many of those, in one process.
        start: a config whose masks are tried first.
        lead_blocks: number of blocks that are always computed.
        seed: of the order in which masks are tried.
        report: called with a line of text now and then.
    Returns:
        The config, the calibration that belongs to it, and what was tried.
    Raises:
        UsageError: the target cannot be reached, the calibration is of another model, or `polish` is not possible.
    """
    aim, say = Target.parse(target), report or (lambda _: None)
    runner, prepared = _prepared(pipe, calls, sigmas, least=1)
    refits = _prepared(pipe, refit_calls, sigmas)[1] if refit_calls else []
    _check_polish(polish, refits)
    loaded = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    base = None if isinstance(calibration, Calibration) else Path(calibration)
    path = _config_path(output, base)
    found: list[Skips] = []
    for number in steps or (None,):
        again = _at(refits, number)
        search = Search(
            runner,
            _at(prepared, number),
            loaded,
            str(base) if base else None,
            lead_blocks,
            seed,
            start,
            Refitter(runner, again, loaded) if refits else None,
            Polisher(runner, again, polish) if polish else None,
        )
        found.append((search, again, find(search, aim, evaluations, say)))
    trials = better(found, say) if refits else [trial for _, _, trial in found]
    tuned = Tuned.of(trials, loaded, {search.steps: list(search.tried.values()) for search, _, _ in found})
    if path and base and world.is_first_rank():
        tuned.save(path, base, f"Tuned for {target} on {type(pipe).__name__}:")
    return tuned


def _prepared(
    pipe: Any, calls: Sequence[Any], sigmas: Sequence[float] | None, least: int = HELD_OUT_EVERY
) -> tuple[Runner, list[Call]]:
    """Return what runs the calls, and the calls; raises UsageError, before anything runs, for what cannot work."""
    prepared = calls_of(pipe, calls)
    if len(prepared) < least:
        raise UsageError(f"{len(prepared)} calls are too few", f"give {least} or more")
    runner = Runner(pipe, sigmas)
    if runner.host.scheduler is None and sigmas is None:
        raise UsageError(
            "nothing says what the steps of a loop are", "give sigmas=[...], the noise level of each step, 1 to 0"
        )
    if not runner.host.is_known:
        _look(runner, prepared[0])
    return runner, prepared


def _look(runner: Runner, call: Call) -> None:
    """Make a call to see how the blocks of a model are called that the catalogue does not have.

    Raises:
        UsageError: they cannot be skipped all at once.
    """
    everything = FastCacheConfig.from_dict({"test": "paper", "warmup_steps": NEVER_SKIPS})
    with runner.enabled(everything) as latents:
        latents(call)
    if runner.host.spec.joints:
        raise UsageError(
            f"{runner.host.spec.name} changes what runs through its blocks between some of them, and a calibration is "
            "of all blocks at once",
            "leave test and granularity out: its output is learnt while serving",
        )


def _check_layout(topology: Topology) -> None:
    for name in UNCALIBRATED:
        if (degree := getattr(topology, name)) > 1:
            raise UsageError(
                f"a model is calibrated under ulysses, ring and CFG parallelism, not with {name}={degree}",
                "one calibration serves every layout",
            )


def _check_polish(polish: int, refits: Sequence[Call]) -> None:
    if polish and (world.size() > 1 or not refits or any(isinstance(call, LoopCall) for call in refits)):
        raise UsageError(
            "polish trains through the calls of a pipeline in one process", "give refit_calls, and no loops or ranks"
        )


def _at(calls: Sequence[Call], steps: int | None) -> list[Call]:
    return list(calls) if steps is None else [call.changed(num_inference_steps=steps) for call in calls]


def _config_path(output: str | Path | None, calibration: Path | None) -> Path | None:
    if output is None:
        return None
    if calibration is None:
        raise UsageError("a config file names its calibration's: give calibration as a path, not an object")
    return writable_file(str(output))
