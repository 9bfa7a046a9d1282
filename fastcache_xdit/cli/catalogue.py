"""All commands: what each does, and where it is."""

from __future__ import annotations

from fastcache_xdit.cli.commands import Command, Group
from fastcache_xdit.host.xdit.flags import ENGINE, RUNNER

BATCH = {
    "submit": Command(
        "check prompts and options, and write them into a new job; no model is loaded",
        "batch.submit",
        "batch.add_submit",
        ENGINE,
    ),
    "run": Command(
        "work on a job, or go on with one, on the ranks of torchrun or on a Ray cluster",
        "batch.run",
        "batch.add_run",
        ENGINE,
        makes=False,
        refuses="batch.add_submit",
    ),
    "status": Command("how far a job is, and why items failed", "batch.status", "batch.add_status", prepares=False),
    "retry": Command(
        "let failed items wait again, and those whose image is gone", "batch.retry", "batch.add_job", prepares=False
    ),
    "export": Command(
        "write a job's items, with what became of each, to a table",
        "batch.export_items",
        "batch.add_export",
        prepares=False,
    ),
}
CALIBRATIONS = {
    "list": Command("what is kept, the newest first", "calibrations.list_all", "calibrations.add_list", prepares=False),
    "show": Command(
        "all that one of them says of itself", "calibrations.show", "calibrations.add_show", prepares=False
    ),
    "remove": Command(
        "remove some, or all; their models are learnt anew",
        "calibrations.remove",
        "calibrations.add_remove",
        prepares=False,
    ),
    "export": Command(
        "copy one to a file, for another machine or for `calibration` in a config",
        "calibrations.export",
        "calibrations.add_export",
        prepares=False,
    ),
}


def _measured(name: str, about: str) -> Command:
    return Command(about, f"bench.{name}", "bench.add_arguments", ENGINE)


BENCH = {
    "peers": Command(
        "every cache over a sweep of its own knob, on the same weights, prompts and seeds",
        "bench_peers.main",
        "bench_peers.add_arguments",
        ENGINE,
    ),
    "speed": Command(
        "how much time the saved compute saves, at published models' size",
        "bench_speed.main",
        "bench_speed.add_arguments",
    ),
    "approximations": _measured("approximations", "what can replace a block, at each share of the FLOPs"),
    "significance": _measured("significance", "what the calibrated test promises, and what comes out"),
    "tokens": _measured("tokens", "partial steps beside skipping alone"),
    "costs": _measured("costs", "what partial steps cost on this machine"),
    "overhead": _measured("overhead", "what the cache itself takes of a request's time"),
    "batch": _measured("batch", "what replicas gain, and what memory a job takes"),
}
COMMANDS: dict[str, Command | Group] = {
    "run": Command(
        "xDiT's own runner, all its flags and models, with --cache fastcache", "run.main", "run.add_arguments", RUNNER
    ),
    "generate": Command(
        "images for prompts with any pipeline xDiT has; --compare measures the cache",
        "generate.main",
        "generate.add_arguments",
        ENGINE,
    ),
    "batch": Group(f"thousands of prompts as a job that survives any crash: batch {', '.join(BATCH)}", "ACTION", BATCH),
    "calibrate": Command(
        "measure a model once, so that stand-ins are fitted and tests mean something",
        "calibrate.main",
        "calibrate.add_arguments",
        ENGINE,
    ),
    "tune": Command(
        "from a target (speedup, psnr or budget) to a config for --cache_config",
        "tune.main",
        "tune.add_arguments",
        ENGINE,
    ),
    "calibrations": Group(
        f"what was learnt and is kept for the next process: calibrations {', '.join(CALIBRATIONS)}",
        "ACTION",
        CALIBRATIONS,
    ),
    "presets": Command(
        "the tuned configs of the small trained models, by the names that --cache_config takes",
        "presets.main",
        "presets.add_arguments",
        prepares=False,
    ),
    "bench": Group(f"benchmarks: bench {', '.join(BENCH)}", "BENCHMARK", BENCH),
    "report": Command(
        "one page on the results of bench peers, and Markdown tables",
        "report.main",
        "report.add_arguments",
        prepares=False,
    ),
    "models": Command(
        "the transformer classes that were tried, and what of the cache works with each",
        "models.main",
        "models.add_arguments",
        prepares=False,
    ),
    "doctor": Command(
        "what is installed, what this machine can run, and what to do about what does not fit",
        "doctor.main",
        "doctor.add_arguments",
        prepares=False,  # it tells what stands in the way of preparing
    ),
}
