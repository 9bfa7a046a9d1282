"""What users can name: growth of any of these is a deliberate change here."""

from __future__ import annotations

import argparse

import pytest

import fastcache_xdit
from fastcache_xdit.cli import catalogue
from fastcache_xdit.cli.options import (
    batch,
    bench,
    bench_peers,
    bench_speed,
    calibrate,
    calibrations,
    doctor,
    generate,
    models,
    presets,
    report,
    run,
    tune,
)
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.jobs.recipe import PromptLine
from fastcache_xdit.models.catalogue import known_models
from fastcache_xdit.options import TokensConfig
from shapes.loading import SHIPPED

PUBLIC = [
    "FastCacheConfig",
    "FastCacheError",
    "Handle",
    "RankDivergenceError",
    "Report",
    "UsageError",
    "calibrate",
    "enable",
    "fastcache",
    "register",
    "tune",
]
OPTIONS = [
    "affine_rank",
    "allow_adapters",
    "alpha",
    "budget",
    "calibration",
    "cfg_agreement",
    "check",
    "cooldown_steps",
    "error_budget",
    "error_decay",
    "granularity",
    "groups",
    "guard_every",
    "lead_blocks",
    "learn",
    "max_consecutive_skips",
    "memory_budget",
    "pp_decision",
    "psnr",
    "reference_dtype",
    "schedule",
    "speedup",
    "stand_in",
    "sync",
    "test",
    "tokens",
    "tolerance",
    "verify_every",
    "warmup_steps",
]
TOKENS = [
    "balance",
    "blend",
    "bucket",
    "costs",
    "keep_ratio",
    "merge_neighbours",
    "merge_ratio",
    "merge_temporal_weight",
    "merge_window",
    "min_static_ratio",
    "score",
    "static_kv",
    "threshold",
    "when",
]
HANDLE = [
    "at",
    "begin",
    "branch",
    "disable",
    "focus",
    "is_recording",
    "learn",
    "learnt",
    "paused",
    "plan",
    "promise",
    "recorded",
    "report",
    "reset",
    "seconds_learning",
    "watched",
]
FLAGS = {
    generate: [
        "--batch_size",
        "--budget",
        "--compare",
        "--config",
        "--dtype",
        "--fps",
        "--output",
        "--overwrite",
        "--prompts",
        "--psnr",
        "--speedup",
    ],
    run: ["--budget", "--config", "--output", "--psnr", "--speedup"],
    doctor: [
        "--cache_config",
        "--calibration",
        "--dtype",
        "--height",
        "--json",
        "--model",
        "--num_frames",
        "--num_inference_steps",
        "--width",
    ],
    models: ["--json"],
    presets: ["--json"],
    calibrate: [
        "--batch_size",
        "--config",
        "--dtype",
        "--granularity",
        "--groups",
        "--lead_blocks",
        "--maps",
        "--output",
        "--prompts",
        "--stages",
    ],
    tune: [
        "--batch_size",
        "--calibration",
        "--config",
        "--dtype",
        "--evaluations",
        "--lead_blocks",
        "--output",
        "--polish",
        "--prompts",
        "--refit_prompts",
        "--start",
        "--steps",
        "--target",
    ],
    bench: [
        "--batch_size",
        "--budgets",
        "--config",
        "--count",
        "--dtype",
        "--maps",
        "--output",
        "--profile",
        "--prompts",
        "--repeats",
        "--settings",
        "--steps",
        "--tolerance",
    ],
    bench_peers: [
        "--batch_size",
        "--config",
        "--configs",
        "--count",
        "--dtype",
        "--only",
        "--output",
        "--prompts",
        "--quick",
        "--repetitions",
        "--settings",
    ],
    bench_speed: [
        "--architecture",
        "--compile",
        "--dtype",
        "--height",
        "--num_frames",
        "--num_inference_steps",
        "--only",
        "--output",
        "--repetitions",
        "--tiny",
        "--width",
    ],
    report: ["--markdown", "--output"],
}
BATCH = {
    "submit": (
        batch.add_submit,
        [
            "--batch_size",
            "--budget",
            "--config",
            "--dtype",
            "--fps",
            "--lease",
            "--pipeline",
            "--prompts",
            "--psnr",
            "--speedup",
        ],
    ),
    "run": (batch.add_run, ["--max_attempts", "--ray", "--replicas"]),
    "status": (batch.add_status, ["--json"]),
    "retry": (batch.add_job, []),
    "export": (batch.add_export, ["--output"]),
}
CALIBRATIONS = {
    "list": (calibrations.add_list, ["--json"]),
    "show": (calibrations.add_show, []),
    "remove": (calibrations.add_remove, ["--all"]),
    "export": (calibrations.add_export, ["--output"]),
}
LINE = [
    *("control_image", "guidance", "height", "image", "mask", "negative_prompt", "num_frames", "prompt", "seed"),
    *("steps", "strength", "video", "width"),
]
MODELS = [
    "DiTTransformer2DModel",
    "FluxTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
    "WanTransformer3DModel",
]


def test_public_names():
    assert sorted(fastcache_xdit.__all__) == PUBLIC
    assert all(hasattr(fastcache_xdit, name) for name in PUBLIC)


def test_config_options():
    assert sorted(FastCacheConfig.model_fields) == OPTIONS
    assert all(f"{name}:" in FastCacheConfig.__doc__ for name in OPTIONS), "every option is documented"


def test_token_options():
    assert sorted(TokensConfig.model_fields) == TOKENS
    assert all(f"{name}:" in TokensConfig.__doc__ for name in TOKENS), "every option is documented"


def test_handle_methods():
    assert sorted(name for name in vars(fastcache_xdit.Handle) if not name.startswith("_")) == HANDLE


def test_commands():
    assert sorted(catalogue.COMMANDS) == [
        "batch",
        "bench",
        "calibrate",
        "calibrations",
        "doctor",
        "generate",
        "models",
        "presets",
        "report",
        "run",
        "tune",
    ]


@pytest.mark.parametrize("command", FLAGS, ids=lambda command: command.__name__)
def test_their_own_flags(command):
    parser = argparse.ArgumentParser(add_help=False)
    command.add_arguments(parser)
    assert sorted(parser._option_string_actions) == FLAGS[command]


@pytest.mark.parametrize("add_arguments, flags", [*BATCH.values(), *CALIBRATIONS.values()])
def test_flags_of_actions(add_arguments, flags):
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    assert sorted(parser._option_string_actions) == flags


def test_actions():
    assert sorted(BATCH) == sorted(catalogue.BATCH)
    assert sorted(CALIBRATIONS) == sorted(catalogue.CALIBRATIONS)


def test_fields_of_a_prompts_file():
    assert sorted(PromptLine.model_fields) == LINE


def test_models():
    assert sorted(known_models()) == MODELS
    assert SHIPPED == ("shapes-pixart", "shapes-flux", "shapes-video")
