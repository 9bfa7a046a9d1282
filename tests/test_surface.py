"""What users can name: growth of any of these is a deliberate change here."""

from __future__ import annotations

import argparse

import fastcache_xdit
from fastcache_xdit.cli import generate, main
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.models.catalogue import known_models
from fastcache_xdit.reference.loading import SHIPPED

PUBLIC = ["FastCacheConfig", "Handle", "enable", "fastcache", "register"]
OPTIONS = [
    "cfg_agreement",
    "cooldown_steps",
    "error_budget",
    "error_decay",
    "granularity",
    "groups",
    "lead_blocks",
    "max_consecutive_skips",
    "pp_decision",
    "stand_in",
    "sync",
    "threshold",
    "verify_every",
    "warmup_steps",
    "window",
]
HANDLE = ["branch", "disable", "report", "reset"]
GENERATE = ["--batch_size", "--compare", "--config", "--dtype", "--output", "--overwrite", "--prompts"]
MODELS = ["DiTTransformer2DModel", "FluxTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel"]


def test_public_names():
    assert sorted(fastcache_xdit.__all__) == PUBLIC
    assert all(hasattr(fastcache_xdit, name) for name in PUBLIC)


def test_config_options():
    assert sorted(FastCacheConfig.model_fields) == OPTIONS
    assert all(f"{name}:" in FastCacheConfig.__doc__ for name in OPTIONS), "every option is documented"


def test_handle_methods():
    assert sorted(name for name in vars(fastcache_xdit.Handle) if not name.startswith("_")) == HANDLE


def test_commands_and_their_own_flags():
    assert sorted(main.COMMANDS) == ["generate", "run"]
    parser = argparse.ArgumentParser(add_help=False)
    generate.add_arguments(parser)
    assert sorted(parser._option_string_actions) == GENERATE


def test_models():
    assert sorted(known_models()) == MODELS
    assert SHIPPED == ("shapes-pixart",)
