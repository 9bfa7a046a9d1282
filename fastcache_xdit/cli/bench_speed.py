"""`bench speed`: how much time the saved compute saves, at published models' size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcache_xdit.bench.peers.catalogue import unscored
from fastcache_xdit.bench.peers.environment import circumstances, package_version
from fastcache_xdit.bench.peers.full_size import FullSize
from fastcache_xdit.bench.peers.measure import BenchPlan, PeerBench
from fastcache_xdit.bench.peers.peer import Peer
from fastcache_xdit.bench.peers.results import plain
from fastcache_xdit.bench.peers.study import ResultRow, pace
from fastcache_xdit.cli.arguments import check_least, own_options
from fastcache_xdit.cli.bench_peers import chosen, thinned
from fastcache_xdit.cli.options.bench_speed import SpeedOptions, add_arguments
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_folder
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import engine, loading, world
from fastcache_xdit.models.architectures import ARCHITECTURES, TINY
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.versions import versions


def main(argv: list[str]) -> int:
    """Measure in one process; each row is written at once. A cache that fails is reported in its own words."""
    register()
    options = own_options(SpeedOptions, argv, add_arguments)
    sizes = _sizes(options)
    check_least(1, **sizes, repetitions=options.repetitions)
    if world.size() > 1:
        raise UsageError("bench speed runs in one process", "start it without torchrun")
    peers = [thinned(peer) for peer in chosen(unscored(), options.only)]
    architecture, dtype = ARCHITECTURES[options.architecture], options.dtype or loading.default_dtype()
    given = {name: size for name, size in sizes.items() if size}
    small = {name: size for name, size in TINY.items() if options.tiny and name in architecture.call}
    plan = _plan({**architecture.call, **small, **given}, options)
    changes = architecture.tiny if options.tiny else {}
    device = "cuda" if cpu.has_accelerator() else "cpu"
    bench = PeerBench(lambda: FullSize(architecture, dtype, device, options.compile, **changes), plan)
    name = options.architecture + "-compiled" * options.compile
    path = writable_folder(options.output) / f"speed-{name}.json"
    _write_rows(path, _conditions(options.architecture, dtype, plan), _rows(bench, peers))
    print(f"fastcache: -> {path}")
    return 0


def _sizes(options: SpeedOptions) -> dict[str, int | None]:
    """Return the arguments of the pipeline's call that say how much it computes."""
    return {
        "num_inference_steps": options.num_inference_steps,
        "height": options.height,
        "width": options.width,
        "num_frames": options.num_frames,
    }


def _plan(call: dict[str, Any], options: SpeedOptions) -> BenchPlan:
    measured, rehearsal = engine.batches(["", ""], 1, 0)
    return BenchPlan(
        [measured], measured, [rehearsal], options.repetitions, call, scored=False, compiled=options.compile
    )


def _write_rows(path: Path, conditions: dict[str, Any], rows: Iterable[ResultRow]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written: list[ResultRow] = []
    for row in rows:
        written.append(row)
        path.write_text(json.dumps({"conditions": conditions, "rows": written}, indent=1) + "\n")


def _conditions(architecture: str, dtype: str, plan: BenchPlan) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "dtype": dtype,
        "compiled": plan.compiled,
        "call": plan.call,
        "versions": versions() | {"cache-dit": package_version("cache-dit")},
        **circumstances(ranks=1),
    }


def _rows(bench: PeerBench, peers: list[Peer]) -> Iterator[ResultRow]:
    for peer in tqdm(peers, unit="cache", dynamic_ncols=True):
        for setting in peer.settings:
            row = plain(bench.measure(peer, setting)) | {"ours": peer.ours}
            tqdm.write(_line(row))
            yield row


def _line(row: ResultRow) -> str:
    name = f"{row['peer']:<32} {row['setting']:<34} {row['status']:<11}"
    return f"{name} {row['transformer']:>6.1%}  {pace(row)}" if row["speedup"] else f"{name} {row['error'][:120]}"
