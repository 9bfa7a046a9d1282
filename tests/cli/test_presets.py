"""Presets and calibrations of the small trained models, by name."""

from __future__ import annotations

import json

import pytest

from fastcache_xdit import FastCacheConfig, UsageError
from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.cli.generate import _cache
from fastcache_xdit.cli.main import main
from fastcache_xdit.cli.options.generate import GenerateOptions, add_arguments
from fastcache_xdit.cli.pipeline import pipeline_options
from fastcache_xdit.host.xdit import loading
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import SHIPPED, calibration_path, presets


def test_each_one_is_listed_with_what_it_was_tuned_for(capsys):
    assert main(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for model in SHIPPED:
        for name in presets(model):
            assert any(line.split()[:2] == [model, name] and line.endswith(" dB") for line in lines), (model, name)
    assert main(["presets", "shapes-flux", "--json"]) == 0
    assert {row["preset"] for row in json.loads(capsys.readouterr().out)} == set(presets("shapes-flux"))


def test_one_is_named_on_the_command_line_and_in_python():
    loading.prepare()
    register()
    argv = ["--model", "shapes-flux", "--prompt", "x", "--cache", "fastcache", "--cache_config", "third"]
    config = _cache(pipeline_options(GenerateOptions, argv, add_arguments))
    assert config == FastCacheConfig.preset("shapes-flux", "third")
    assert config == FastCacheConfig.from_file(presets("shapes-flux")["third"])
    with pytest.raises(UsageError, match="shapes-flux has no preset 'thrid'; did you mean 'third'"):
        FastCacheConfig.preset("shapes-flux", "thrid")


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "third").write_text("budget: 0.4\n")
    monkeypatch.chdir(tmp_path)
    argv = ["--model", "shapes-flux", "--prompt", "x", "--cache", "fastcache", "--cache_config", "third"]
    assert _cache(pipeline_options(GenerateOptions, argv, add_arguments)).budget == 0.4


def test_a_calibration_is_named_by_its_model(tmp_path):
    options = {"test": "calibrated", "calibration": "shapes-pixart"}
    file = tmp_path / "config.yaml"
    file.write_text("test: calibrated\ncalibration: shapes-pixart\n")
    configs = [FastCacheConfig(**options), FastCacheConfig.from_file(file)]
    configs.append(FastCacheConfig.from_text(json.dumps(options)))
    assert {config.calibration for config in configs} == {str(calibration_path("shapes-pixart"))}
    assert Calibration.cached(configs[0].calibration).identity["model"] == "PixArtTransformer2DModel"
