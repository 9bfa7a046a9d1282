"""A goal on the command line of `run`, whose runner knows a cache's config alone."""

from __future__ import annotations

import pytest

from fastcache_xdit.cli import run
from fastcache_xdit.config import FastCacheConfig

WORDS = ["--model", "FLUX.1-dev", "--prompt", "x", "--cache", "fastcache"]


@pytest.fixture(scope="module")
def handed():
    """What xDiT's runner gets of a command line: its words, and the config in them."""
    from fastcache_xdit.host.xdit import loading
    from fastcache_xdit.plugin import register

    loading.prepare()
    register()
    parser = run.runner_parser()

    def handed(*words):
        argv = run.command_line(parser, [*WORDS, *words])
        argv = run.as_xdit_reads_it(argv, run.run_options(parser, argv))
        return argv, FastCacheConfig.from_text(run.run_options(parser, argv).cache_config)

    return handed


@pytest.mark.parametrize("words", [["--budget", "0.3"], ["--budget=0.3"]])
def test_it_becomes_a_part_of_the_config(handed, words):
    argv, config = handed("--cache_config", '{"learn": 2}', *words, "--seed", "3")
    assert (config.budget, config.learn) == (0.3, 2)
    assert not any(word.startswith("--budget") for word in argv) and argv[-3:-1] == ["--seed", "3"]


def test_a_file_gives_one_too(handed, tmp_path):
    (tmp_path / "options.yaml").write_text("psnr: 36\n")
    assert handed("--config", str(tmp_path / "options.yaml"))[1].psnr == 36


def test_a_preset_of_a_shipped_model_becomes_the_config(handed):
    config = handed("--model", "shapes-flux", "--cache_config", "third")[1]
    assert config == FastCacheConfig.preset("shapes-flux", "third") and config.schedule


def test_without_one_nothing_changes(handed):
    assert handed("--seed", "3")[0] == [*WORDS, "--seed", "3"]
