"""`batch`: jobs of many prompts that go on after any crash: submit, run, status, retry, export."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.arguments import parse
from fastcache_xdit.cli.batch_arguments import (
    add_export,
    add_job,
    add_run,
    add_status,
    add_submit,
    check_layout,
    check_replicas,
    recipe_of,
    refuse_settled,
)
from fastcache_xdit.cli.pipeline import engine_parser, pipeline_options
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import layout, world
from fastcache_xdit.host.xdit.replica import check_machines
from fastcache_xdit.jobs.cluster import ranks_per_replica
from fastcache_xdit.jobs.export import damaged, export
from fastcache_xdit.jobs.progress import describe
from fastcache_xdit.jobs.prompts import read_prompts
from fastcache_xdit.jobs.ray_run import run_on_ray
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.jobs.run import SOME_FAILED, exit_code
from fastcache_xdit.jobs.run import run as run_job
from fastcache_xdit.jobs.store import Store
from fastcache_xdit.jobs.submit import items_of
from fastcache_xdit.plugin import register

SHOWN = 20  # failed items that `status` names


def main(argv: list[str]) -> int:
    """Carry out one of the actions and return its exit code."""
    if not argv or argv[0] not in ACTIONS:
        raise UsageError(f"which action? give one of {', '.join(ACTIONS)}", "batch ACTION --help lists its options")
    return ACTIONS[argv[0]](argv[1:])


def submit(argv: list[str]) -> int:
    """Check everything that can be checked without a model, and write the job."""
    register()
    options = pipeline_options("batch submit", argv, add_submit)
    if options["prompt"]:
        raise UsageError("batch takes prompts from a file: give --prompts FILE instead of --prompt")
    if not options["prompts"]:
        raise UsageError("no prompts: give --prompts FILE (.txt, .jsonl, .csv or .parquet)")
    recipe = recipe_of(options)
    lines, folder = read_prompts(options["prompts"]), Path(recipe.model)
    pixels = layout.pixels_per_token(folder) if folder.is_dir() else 1
    store = Store.create(options["job"], recipe, items_of(lines, recipe, pixels))
    bad = store.counts()["failed"]
    told = f", {bad} of them failed already: fastcache-xdit batch status {options['job']}" if bad else ""
    print(f"fastcache: {len(lines)} items{told}; next: fastcache-xdit batch run {options['job']}")
    return 0


def run(argv: list[str]) -> int:
    """Check the layout, then work on the job on every rank."""
    register()
    refuse_settled(argv)
    parser = engine_parser("batch run", add_run)
    folder = Path(vars(parse(parser, argv))["job"])
    recipe = Recipe.load(folder)
    parser.set_defaults(**recipe.engine)
    options = vars(parse(parser, argv))
    check_replicas(options)
    check_layout(recipe, options)
    if options["ray"] is not None:
        layout.check_degrees(options, ranks_per_replica(options))
        return run_on_ray(folder, options, options["max_attempts"], options["ray"] or None, options["replicas"] or 1)
    layout.check_degrees(options, world.size())
    check_machines(options["data_parallel_degree"] or 1, os.environ)
    return run_job(folder, options, options["max_attempts"])


def status(argv: list[str]) -> int:
    """Print how far a job is, and why items failed; the exit code says it as that of `run` does."""
    options = _options("status", argv, add_status)
    store = Store(options["job"])
    counts, totals = store.counts(), store.totals()
    if options["json"]:
        print(json.dumps({**counts, **totals}))
        return exit_code(store)
    print(f"fastcache: {describe(counts, totals)}")
    failed = store.items("state = 'failed'")
    for item in failed[:SHOWN]:
        print(f"  item {item.id} ({item.prompt[:40]!r}): {item.error}")
    if len(failed) > SHOWN:
        more = f"fastcache-xdit batch export {options['job']} --output items.jsonl"
        print(f"  ... and {len(failed) - SHOWN} more: {more}")
    return exit_code(store)


def retry(argv: list[str]) -> int:
    """Let failed items wait again, and done ones whose image is gone or altered."""
    store = Store(_options("retry", argv, add_job)["job"])
    again = store.retry(damaged(store))
    left = store.counts()["failed"]
    told = f"; {left} were bad lines of the prompts file: correct them and submit them as another job" if left else ""
    print(f"fastcache: {again} items wait again{told}")
    return 0


def export_items(argv: list[str]) -> int:
    """Write the job's items to a table; the exit code tells whether all images are what was made."""
    options = _options("export", argv, add_export)
    store = Store(options["job"])
    export(store, Path(options["output"]))
    print(f"fastcache: {describe(store.counts(), store.totals())} -> {options['output']}")
    if broken := damaged(store):
        print(f"fastcache: {len(broken)} images are gone or altered; make them anew: batch retry, then run")
    return SOME_FAILED if broken else 0


ACTIONS = {"submit": submit, "run": run, "status": status, "retry": retry, "export": export_items}


def _options(action: str, argv: list[str], add_arguments: Any) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog=f"fastcache_xdit batch {action}")
    add_arguments(parser)
    return vars(parse(parser, argv))
