"""`bench peers`: every cache over a sweep of its own knob, on the same weights, prompts, seeds and machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcache_xdit.bench.peers.backends import Backend, PlainBackend, XditBackend
from fastcache_xdit.bench.peers.catalogue import catalogue
from fastcache_xdit.bench.peers.curves import draw_study
from fastcache_xdit.bench.peers.environment import circumstances, digest, package_version
from fastcache_xdit.bench.peers.measure import BenchPlan, PeerBench
from fastcache_xdit.bench.peers.measurement import RAN, Measurement
from fastcache_xdit.bench.peers.peer import Peer, Setting
from fastcache_xdit.bench.peers.results import Results, write_csv
from fastcache_xdit.bench.peers.score import score
from fastcache_xdit.bench.peers.study import RESULTS, UNCACHED, studies
from fastcache_xdit.cli.arguments import check_least
from fastcache_xdit.cli.cache import cache_config
from fastcache_xdit.cli.options.bench_peers import COUNT, QUICK_COUNT, PeersOptions, add_arguments
from fastcache_xdit.cli.options.values import model_folder
from fastcache_xdit.cli.pipeline import (
    call_arguments,
    pipeline_options,
)
from fastcache_xdit.cli.prompts import prompts_of
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_folder
from fastcache_xdit.host.xdit import engine, layout, world
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED, calibration_prompts, held_out_prompts, presets
from fastcache_xdit.tuning.versions import versions

TIMED = 2  # prompts of the requests whose time is taken
QUICK_EVERY = 3
REHEARSALS, REHEARSED_SEED = 4, 1000


def main(argv: list[str]) -> int:
    """Run what is not in the results folder yet; the first rank writes."""
    register()
    options = pipeline_options(PeersOptions, argv, add_arguments)
    folder, call = model_folder(options.model), call_arguments(options)
    check_least(1, count=options.count, repetitions=options.repetitions)
    layout.check_degrees(options.layout, world.size())
    configs = _configs(options)
    peers, plan = _chosen(options, configs), _plan(options, call)
    conditions = _conditions(options, plan, configs)
    results = Results(_output(options, conditions), conditions) if world.is_first_rank() else None
    load = _loader(folder, options)
    done = world.all_gather_objects(results.measured() if results else None)[0]
    todo = [(peer, setting) for peer in peers for setting in peer.settings if (peer.name, setting.label) not in done]
    if todo:
        _run(PeerBench(load, plan), todo, results, (UNCACHED, "") not in done)
    if results:
        study = studies(results.folder)[0]
        print(f"fastcache: -> {results.folder / RESULTS}, {write_csv(study)}, {draw_study(study)}")
    world.finish()
    return 0


def _output(options: PeersOptions, conditions: Mapping[str, Any]) -> Path:
    model = Path(conditions["model"]).name
    return writable_folder(options.output) / f"{model}-{conditions['steps']}" / conditions["layout"]


def _run(bench: PeerBench, todo: list[tuple[Peer, Setting]], results: Results | None, first: bool) -> None:
    if results and first:
        scores = score(bench.backend.pipe, bench.plan.batches, bench.truth, bench.truth)
        results.add(Measurement(UNCACHED, "", RAN, compute=1.0, scores=scores, pictures=bench.truth.pictures))
    bar = tqdm(todo, disable=not world.is_first_rank(), unit="setting", dynamic_ncols=True)
    for peer, setting in bar:
        bar.set_description(peer.name)
        measurement = bench.measure(peer, setting)
        if results:
            results.add(measurement, peer)
            bar.write(_line(measurement))


def _line(row: Measurement) -> str:
    name = f"{row.peer:<32} {row.setting:<34} {row.status:<11}"
    if not (row.scores and row.speedup and row.compute):
        return f"{name} {row.error.splitlines()[0][:120]}"
    times = "{median:.2f}x ({least:.2f} to {most:.2f}, {repetitions} runs)".format(**row.speedup)
    left = "" if row.restored else "  LEFT SOMETHING BEHIND"
    return f"{name} {row.compute:>6.1%} {row.scores.psnr_db:>6.2f} dB  {times}{left}"


def _configs(options: PeersOptions) -> dict[str, Path]:
    """Return FastCache's config files by label: those that come with the model, and those of the command line."""
    given = {Path(path).stem: Path(path) for path in options.configs}
    for path in given.values():
        cache_config(str(path))  # what is wrong with a file is said before anything runs
    return (presets(options.model) if options.model in SHIPPED else {}) | given


def _chosen(options: PeersOptions, configs: Mapping[str, Path]) -> list[Peer]:
    peers = with_settings(chosen(catalogue(configs), options.only), options.settings)
    return [peer if peer.ours else thinned(peer) for peer in peers] if options.quick else peers


def chosen(everybody: Sequence[Peer], words: Sequence[str] | None) -> list[Peer]:
    """Return the caches whose name has one of these words in it. Raises UsageError where there are none."""
    peers = [peer for peer in everybody if any(word in peer.name for word in words or [""])]
    if not peers:
        names = ", ".join(peer.name for peer in everybody)
        raise UsageError(f"no cache has {' or '.join(words or [])} in its name", f"there are {names}")
    return peers


def with_settings(peers: Sequence[Peer], words: Sequence[str] | None) -> list[Peer]:
    """Return the caches with the settings alone that have one of these words in them. Raises as `chosen`."""
    if not words:
        return list(peers)
    some = [replace(peer, settings=_having(peer, words)) for peer in peers]
    if not any(peer.settings for peer in some):
        labels = ", ".join(setting.label for peer in peers for setting in peer.settings)
        raise UsageError(f"no setting has {' or '.join(words)} in it", f"there are {labels}")
    return some


def _having(peer: Peer, words: Sequence[str]) -> tuple[Setting, ...]:
    return tuple(setting for setting in peer.settings if any(word in setting.label for word in words))


def thinned(peer: Peer) -> Peer:
    """Keep every third setting."""
    return replace(peer, settings=peer.settings[1::QUICK_EVERY])


def _plan(options: PeersOptions, call: dict[str, Any]) -> BenchPlan:
    texts = _prompts(options, options.count or (QUICK_COUNT if options.quick else COUNT))
    batches = engine.batches(texts, options.batch_size, options.seed)
    timed = engine.batches(texts, TIMED, options.seed)[0]
    rehearsals = engine.batches(_rehearsals(options, texts), 1, REHEARSED_SEED)
    return BenchPlan(batches, timed, rehearsals, options.repetitions, call, model=options.model or "")


def _prompts(options: PeersOptions, count: int) -> list[str]:
    """Return the command line's prompts, or those of the shapes that neither training nor calibration have seen."""
    if options.prompts or options.prompt or options.model not in SHIPPED:
        return prompts_of(options)[:count]
    seen = set(calibration_prompts(options.model))
    held_out = held_out_prompts(options.model, count + len(seen), options.seed)
    return [text for text in held_out if text not in seen][:count]


def _rehearsals(options: PeersOptions, texts: list[str]) -> list[str]:
    return calibration_prompts(options.model)[:REHEARSALS] if options.model in SHIPPED else texts[-REHEARSALS:]


def _loader(folder: str, options: PeersOptions) -> Callable[[], Backend]:
    """Load a plain pipeline anew for each call; on several ranks always xDiT's one, whose groups are set up once."""
    if world.size() == 1:
        return lambda: PlainBackend(folder, options.dtype)
    running = XditBackend(engine.Engine(folder, options.xdit, options.dtype), world.size())
    return lambda: running


def _conditions(options: PeersOptions, plan: BenchPlan, configs: Mapping[str, Path]) -> dict[str, Any]:
    requests, folder = [request for batch in plan.batches for request in batch], Path(model_folder(options.model))
    degrees = [f"{name.split('_')[0]}{degree}" for name, degree in options.layout.degrees.items() if degree > 1]
    return {
        "model": options.model,
        "steps": plan.steps,
        "layout": "-".join(degrees) or "1",
        "ranks": world.size(),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "count": len(requests),
        "prompts": digest(json.dumps([(request.prompt, request.seed) for request in requests]).encode()),
        "weights": digest(*(path.read_bytes() for path in sorted(folder.glob("transformer/*.safetensors")))),
        "configs": {label: digest(path.read_bytes()) for label, path in configs.items()},
        "call": plan.call,
        "versions": versions() | {"cache-dit": package_version("cache-dit")},
        "peers": [peer.name for peer in catalogue(configs)],
        "sweep": f"every {QUICK_EVERY}rd setting of each other cache" if options.quick else "whole",
        **circumstances(world.size()),
    }
