"""Every file that ships under configs/ loads, and every script is valid."""

import subprocess
from pathlib import Path

import pytest

from fastcache_xdit.cli.generate import add_arguments
from fastcache_xdit.config import FastCacheConfig, read_yaml
from fastcache_xdit.host.xdit import engine

ROOT = Path(__file__).parents[1]
JOBS = sorted(ROOT.glob("configs/*.yaml"))
CACHES = sorted(ROOT.glob("configs/cache/*.yaml"))


@pytest.fixture(scope="module")
def options():
    engine.prepare()
    from fastcache_xdit import register

    register()
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    xFuserArgs.add_cli_args(parser)
    add_arguments(parser)
    return {flag.removeprefix("--"): action for flag, action in parser._option_string_actions.items()}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_jobs_name_real_options_and_files(path, options):
    values = read_yaml(path)
    assert values and set(values) <= set(options)
    if "prompts" in values:
        assert (ROOT / values["prompts"]).is_file()
    if values.get("cache_config"):
        FastCacheConfig.from_file(ROOT / values["cache_config"])


@pytest.mark.parametrize("path", CACHES, ids=lambda path: path.name)
def test_cache_configs_load(path):
    assert isinstance(FastCacheConfig.from_file(path), FastCacheConfig)


def test_there_are_some():
    assert JOBS and CACHES


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/*.sh")), ids=lambda path: path.name)
def test_scripts_are_valid_shell(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
