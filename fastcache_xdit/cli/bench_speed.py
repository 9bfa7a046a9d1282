"""`bench speed`: how much of the compute that caches save is time saved, at the size of published models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastcache_xdit.bench.peers.catalogue import unscored
from fastcache_xdit.bench.peers.environment import circumstances, package_version
from fastcache_xdit.bench.peers.full_size import ARCHITECTURES, FullSize
from fastcache_xdit.bench.peers.measure import BenchPlan, PeerBench
from fastcache_xdit.bench.peers.peer import Peer
from fastcache_xdit.bench.peers.results import plain
from fastcache_xdit.bench.peers.study import ResultRow, pace
from fastcache_xdit.cli.arguments import check_least, parse
from fastcache_xdit.cli.bench_peers import chosen, thinned
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import engine, loading, world
from fastcache_xdit.plugin import register
from fastcache_xdit.tuning.calibrate import versions

SIZE = ("height", "width", "num_frames")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    names = sorted(ARCHITECTURES)
    parser.add_argument("--architecture", choices=names, default="flux.1-dev", help="default: %(default)s")
    parser.add_argument("--num_inference_steps", type=int, default=20, help="default: %(default)s")
    for name in SIZE:
        parser.add_argument(f"--{name}", type=int, help="default: the model's own")
    parser.add_argument(
        "--dtype", choices=sorted(loading.DTYPES), help="default: bfloat16, float32 without accelerator"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="of each timing; default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="caches whose name has one of these in it")
    parser.add_argument("--output", metavar="FOLDER", default="results/speed", help="default: %(default)s")


def main(argv: list[str]) -> int:
    """Measure in one process; each row is written at once. A cache that fails is reported in its own words."""
    register()
    parser = argparse.ArgumentParser(prog="fastcache_xdit bench speed")
    add_arguments(parser)
    options = vars(parse(parser, argv))
    check_least(1, options, "num_inference_steps", "repetitions", *SIZE)
    if world.size() > 1:
        raise UsageError("bench speed runs in one process", "start it without torchrun")
    peers = [thinned(peer) for peer in chosen(unscored(), options["only"])]
    dtype, plan = options["dtype"] or loading.default_dtype(), _plan(options)
    path = Path(options["output"]) / f"speed-{options['architecture']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {"conditions": _conditions(options["architecture"], dtype, plan), "rows": []}
    device = "cuda" if cpu.has_accelerator() else "cpu"
    for row in _rows(PeerBench(lambda: FullSize(ARCHITECTURES[options["architecture"]], dtype, device), plan), peers):
        known["rows"].append(row)
        path.write_text(json.dumps(known, indent=1) + "\n")
    print(f"fastcache: -> {path}")
    return 0


def _plan(options: dict[str, Any]) -> BenchPlan:
    given = {name: options[name] for name in ("num_inference_steps", *SIZE) if options[name]}
    call = {**ARCHITECTURES[options["architecture"]].call, **given}
    measured, rehearsal = engine.batches(["", ""], 1, 0)
    return BenchPlan([measured], measured, rehearsal, options["repetitions"], call, scored=False)


def _conditions(architecture: str, dtype: str, plan: BenchPlan) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "dtype": dtype,
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


def _line(row: dict[str, Any]) -> str:
    name = f"{row['peer']:<32} {row['setting']:<34} {row['status']:<11}"
    return f"{name} {row['transformer']:>6.1%}  {pace(row)}" if row["speedup"] else f"{name} {row['error'][:120]}"
