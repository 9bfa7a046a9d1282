"""`bench peers`: every cache over a sweep of its own knob, on the same weights, prompts, seeds and machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcache_xdit.bench.peers.catalogue import catalogue
from fastcache_xdit.bench.peers.environment import circumstances, digest, package_version
from fastcache_xdit.bench.peers.frontier import draw
from fastcache_xdit.bench.peers.measure import RAN, Bench, Outcome, Plan
from fastcache_xdit.bench.peers.peer import Peer, Setting
from fastcache_xdit.bench.peers.results import UNCACHED, Results, studies, write_csv
from fastcache_xdit.bench.peers.score import score
from fastcache_xdit.bench.peers.site import Parallel, Place, Plain
from fastcache_xdit.cli.arguments import check_least, is_first_rank
from fastcache_xdit.cli.pipeline import (
    add_pipeline_arguments,
    call_arguments,
    model_folder,
    pipeline_options,
    prompts_of,
)
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import engine, layout, loading, world
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED, calibration_prompts, held_out_prompts, presets
from fastcache_xdit.tuning.calibrate import versions

TIMED = 2  # prompts of the requests whose time is taken
QUICK_COUNT, QUICK_EVERY = 8, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options, beside xDiT's engine flags."""
    own = parser.add_argument_group("fastcache_xdit bench peers")
    add_pipeline_arguments(own, batch_size=8)
    own.add_argument("--count", type=int, default=32, help="prompts, held out from calibration; default: %(default)s")
    own.add_argument("--repetitions", type=int, default=3, help="of each timing; default: %(default)s")
    own.add_argument("--configs", nargs="+", default=[], metavar="FILE.yaml", help="FastCache configs of this model")
    own.add_argument("--only", nargs="+", metavar="NAME", help="caches whose name has one of these in it")
    own.add_argument("--quick", action="store_true", help="8 prompts, and every third setting of each other cache")
    own.add_argument("--output", metavar="FOLDER", default="results/peers", help="default: %(default)s")


def main(argv: list[str]) -> int:
    """Run what is not in the results folder yet; the first rank writes."""
    register()
    options = pipeline_options("bench peers", argv, add_arguments)
    folder, call = model_folder(options["model"]), call_arguments(options)
    check_least(1, options, "count", "repetitions")
    layout.check_degrees(options, world.size())
    dtype = options["dtype"] or loading.default_dtype()
    peers = _chosen(options)
    conditions = _conditions(options, call, dtype)
    output = Path(options["output"]) / f"{Path(options['model']).name}-{conditions['steps']}" / conditions["layout"]
    results = Results(output, conditions) if is_first_rank() else None
    load = _loader(folder, options, dtype)
    known = world.all_gather_objects(results.known() if results else None)[0]
    todo = [(peer, setting) for peer in peers for setting in peer.settings if (peer.name, setting.label) not in known]
    if todo:
        _run(Bench(load, _plan(options, call)), todo, results, (UNCACHED, "") not in known)
    if results:
        study = studies(output)[0]
        print(f"fastcache: -> {output / 'results.jsonl'}, {write_csv(study)}, {draw(study)}")
    world.finish()
    return 0


def _run(bench: Bench, todo: list[tuple[Peer, Setting]], results: Results | None, first: bool) -> None:
    if results and first:
        itself = score(bench.place.pipe, bench.plan.batches, bench.truth, bench.truth)
        results.add(Outcome(UNCACHED, "", RAN, compute=1.0, scores=itself, pictures=bench.truth.pictures))
    bar = tqdm(todo, disable=not is_first_rank(), unit="setting", dynamic_ncols=True)
    for peer, setting in bar:
        bar.set_description(peer.name)
        outcome = bench.measure(peer, setting)
        if results:
            results.add(outcome, peer)
            bar.write(_line(outcome))


def _line(outcome: Outcome) -> str:
    name = f"{outcome.peer:<32} {outcome.setting:<34} {outcome.status:<11}"
    if not (outcome.scores and outcome.speedup and outcome.compute):
        return f"{name} {outcome.error.splitlines()[0][:120]}"
    pace = outcome.speedup
    times = f"{pace['median']:.2f}x ({pace['least']:.2f} to {pace['most']:.2f}, {pace['repetitions']} runs)"
    left = "" if outcome.restored else "  LEFT SOMETHING BEHIND"
    return f"{name} {outcome.compute:>6.1%} {outcome.scores.psnr_db:>6.2f} dB  {times}{left}"


def _configs(options: dict[str, Any]) -> dict[str, Path]:
    """FastCache's config files by label: those that ship with the model, and those of the command line."""
    given = {Path(path).stem: Path(path) for path in options["configs"]}
    return (presets(options["model"]) if options["model"] in SHIPPED else {}) | given


def _chosen(options: dict[str, Any]) -> list[Peer]:
    peers = chosen(catalogue(_configs(options)), options["only"])
    return [peer if peer.ours else thinned(peer) for peer in peers] if options["quick"] else peers


def chosen(everybody: list[Peer], words: list[str] | None) -> list[Peer]:
    """Those whose name has one of these words in it. Raises UsageError where there are none."""
    peers = [peer for peer in everybody if any(word in peer.name for word in words or [""])]
    if not peers:
        names = ", ".join(peer.name for peer in everybody)
        raise UsageError(f"no cache has {' or '.join(words or [])} in its name", f"there are {names}")
    return peers


def thinned(peer: Peer) -> Peer:
    """With every third setting."""
    return replace(peer, settings=peer.settings[1::QUICK_EVERY])


def _plan(options: dict[str, Any], call: dict[str, Any]) -> Plan:
    quick = options["quick"]
    texts = _prompts(options, QUICK_COUNT if quick else options["count"])
    batches = engine.batches(texts, options["batch_size"], options["seed"])
    timed = engine.batches(texts, TIMED, options["seed"])[0]
    rehearsal = engine.batches(_rehearsal(options, texts), 1, 0)[0]
    return Plan(batches, timed, rehearsal, options["repetitions"], call)


def _prompts(options: dict[str, Any], count: int) -> list[str]:
    """Of the command line, or those of the shapes language that neither training nor calibration have seen."""
    if options["prompts"] or options["prompt"] or options["model"] not in SHIPPED:
        return prompts_of(options)[:count]
    seen = set(calibration_prompts(options["model"]))
    held_out = held_out_prompts(options["model"], count + len(seen), options["seed"])
    return [text for text in held_out if text not in seen][:count]


def _rehearsal(options: dict[str, Any], texts: list[str]) -> list[str]:
    return calibration_prompts(options["model"])[:1] if options["model"] in SHIPPED else texts[-1:]


def _loader(folder: str, options: dict[str, Any], dtype: str) -> Callable[[], Place]:
    """A plain pipeline anew for each call; or on several ranks the one that xDiT has, its groups being set up once."""
    if world.size() == 1:
        return lambda: Plain(folder, dtype)
    running = Parallel(engine.Engine(folder, options, dtype), world.size())
    return lambda: running


def _conditions(options: dict[str, Any], call: dict[str, Any], dtype: str) -> dict[str, Any]:
    texts, folder = _plan(options, call).batches, Path(model_folder(options["model"]))
    degrees = [f"{name.split('_')[0]}{degree}" for name, degree in layout.degrees(options).items() if degree > 1]
    return {
        "model": options["model"],
        "steps": call["num_inference_steps"],
        "layout": "-".join(degrees) or "1",
        "ranks": world.size(),
        "dtype": dtype,
        "batch_size": options["batch_size"],
        "seed": options["seed"],
        "count": sum(len(batch) for batch in texts),
        "prompts": digest(repr(texts).encode()),
        "weights": digest(*(path.read_bytes() for path in sorted(folder.glob("transformer/*.safetensors")))),
        "configs": {label: digest(path.read_bytes()) for label, path in _configs(options).items()},
        "call": call,
        "versions": versions() | {"cache-dit": package_version("cache-dit")},
        "peers": [peer.name for peer in catalogue(_configs(options))],
        "sweep": f"every {QUICK_EVERY}rd setting of each other cache" if options["quick"] else "whole",
        **circumstances(world.size()),
    }
