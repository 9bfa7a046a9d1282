"""`batch`: jobs of many prompts that go on after any crash: submit, run, status, retry, export."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fastcache_xdit.cli.arguments import fill, own_options, parse
from fastcache_xdit.cli.batch_checks import check_layout, check_replicas, recipe_of, refuse_settled
from fastcache_xdit.cli.options.batch import (
    BatchRunOptions,
    ExportOptions,
    RetryOptions,
    StatusOptions,
    SubmitOptions,
    add_export,
    add_job,
    add_run,
    add_status,
    add_submit,
)
from fastcache_xdit.cli.pipeline import engine_parser, kept_options, pipeline_options
from fastcache_xdit.errors import UsageError
from fastcache_xdit.files import writable_file
from fastcache_xdit.host.xdit import checkpoint, flags, kinds, layout, world
from fastcache_xdit.host.xdit.loading import xdit_options
from fastcache_xdit.host.xdit.replica import check_machines
from fastcache_xdit.jobs.export import damaged, export
from fastcache_xdit.jobs.inputs import FOLDER, fitting
from fastcache_xdit.jobs.progress import describe, describe_learnt
from fastcache_xdit.jobs.prompts import read_prompts
from fastcache_xdit.jobs.ray_run import run_on_ray
from fastcache_xdit.jobs.recipe import RECIPE, BadLine, PromptLine, Recipe, check_limits
from fastcache_xdit.jobs.run import SOME_FAILED, exit_code
from fastcache_xdit.jobs.run import run as run_job
from fastcache_xdit.jobs.store import Store
from fastcache_xdit.jobs.submit import items_of
from fastcache_xdit.plugin import register

SHOWN = 20  # failed items that `status` names


def submit(argv: list[str]) -> int:
    """Check everything that can be checked without a model, and write the job."""
    register()
    options = pipeline_options(SubmitOptions, argv, add_submit)
    if options.prompt:
        raise UsageError("batch takes prompts from a file: give --prompts FILE instead of --prompt")
    if not options.prompts:
        raise UsageError("no prompts: give --prompts FILE (.txt, .jsonl, .csv or .parquet)")
    recipe = recipe_of(options, options.fps, options.pipeline, options.lease)
    lines, folder = _lines(options.prompts, recipe), Path(recipe.model)
    check_limits(recipe.call, recipe.seed, len(lines))
    pixels = checkpoint.pixels_per_token(folder) if folder.is_dir() else 1
    store = Store.create(options.job, recipe, items_of(lines, recipe, pixels))
    failed = store.counts()["failed"]
    told = f", {failed} of them failed already: fastcache-xdit batch status {options.job}" if failed else ""
    print(f"fastcache: {len(lines)} items{told}; next: fastcache-xdit batch run {options.job}")
    return 0


def _lines(prompts: str, recipe: Recipe) -> list[PromptLine | BadLine]:
    """Read the lines, those as bad ones that the pipeline cannot make anything of."""
    folder = Path(recipe.model)
    kind = recipe.pipeline or (checkpoint.pipeline_class(folder) if folder.is_dir() else None)
    takes = kinds.call_parameters(kind) if kind else {"num_frames"}
    return read_prompts(prompts, lambda line: fitting(line, kind, takes))


def run(argv: list[str]) -> int:
    """Check the layout, then work on the job on every rank."""
    register()
    refuse_settled(argv)
    options, recipe = _run_options(argv)
    check_replicas(options)
    check_layout(recipe, options.layout)
    if options.ray is not None:
        layout.check_degrees(options.layout, options.layout.ranks)
        _refuse_files(options.job)
        replicas = options.replicas or 1
        return run_on_ray(options.job, options.xdit, options.max_attempts, options.ray or None, replicas)
    layout.check_degrees(options.layout, world.size())
    check_machines(options.layout.data_parallel_degree, os.environ)
    return run_job(options.job, options.xdit, options.max_attempts)


def _refuse_files(job: Path) -> None:
    if (job / FOLDER).is_dir():
        raise UsageError(
            "items of this job have files, which other machines do not see", "leave --ray out, set data_parallel_degree"
        )


def _run_options(argv: list[str]) -> tuple[BatchRunOptions, Recipe]:
    """Read the options of `run`, whose defaults are those of the job, and the job's recipe."""
    parser = engine_parser(add_run)
    job = parse(parser, argv).job
    recipe = Recipe.load(job)
    if foreign := recipe.engine.keys() - kept_options(flags.parser(flags.ENGINE)):
        problem = f"{job / RECIPE}: {', '.join(sorted(foreign))} is not for a job to set"
        raise UsageError(problem, "was the job made by somebody else? submit it anew")
    parser.set_defaults(**recipe.engine)
    parsed = parse(parser, argv)
    return fill(BatchRunOptions, parsed, xdit=xdit_options(vars(parsed)), layout=layout.Layout.of(parsed)), recipe


def status(argv: list[str]) -> int:
    """Print how far a job is, and why items failed; the exit code says it as that of `run` does."""
    options = own_options(StatusOptions, argv, add_status)
    store = Store(options.job)
    counts, totals = store.counts(), store.totals()
    if options.json:
        print(json.dumps({**counts, **totals}))
        return exit_code(store)
    print(f"fastcache: {describe(counts, totals)}")
    if learnt := describe_learnt(store):
        print(f"fastcache: {learnt}")
    failed = store.items("state = 'failed'")
    for item in failed[:SHOWN]:
        print(f"  item {item.id} ({item.prompt[:40]!r}): {item.error}")
    if len(failed) > SHOWN:
        more = f"fastcache-xdit batch export {options.job} --output items.jsonl"
        print(f"  ... and {len(failed) - SHOWN} more: {more}")
    return exit_code(store)


def retry(argv: list[str]) -> int:
    """Let failed items wait again, and done ones whose image is gone or altered."""
    store = Store(own_options(RetryOptions, argv, add_job).job)
    again = store.retry(damaged(store))
    failed = store.counts()["failed"]
    told = f"; {failed} were bad lines of the prompts file: correct them and submit them as another job"
    print(f"fastcache: {again} items wait again{told if failed else ''}")
    return 0


def export_items(argv: list[str]) -> int:
    """Write the job's items to a table; the exit code tells whether all images are what was made."""
    options = own_options(ExportOptions, argv, add_export)
    store = Store(options.job)
    export(store, writable_file(options.output))
    print(f"fastcache: {describe(store.counts(), store.totals())} -> {options.output}")
    if broken := damaged(store):
        print(f"fastcache: {len(broken)} images are gone or altered; make them anew: batch retry, then run")
    return SOME_FAILED if broken else 0
