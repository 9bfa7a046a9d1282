"""Every file that ships under configs/: what it names exists, and xDiT takes it, in each of its layouts."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fastcache_xdit.cli import generate, offload, run
from fastcache_xdit.cli.arguments import read_options
from fastcache_xdit.cli.cache import cache_config
from fastcache_xdit.cli.pipeline import pipeline_options
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.xdit import layout
from fastcache_xdit.models.tried import all_tried
from fastcache_xdit.plugin import register
from fastcache_xdit.reading import read_yaml

ROOT = Path(__file__).parents[1]
JOBS = sorted(ROOT.glob("configs/*.yaml"))
CACHES = sorted(ROOT.glob("configs/cache/*.yaml"))


@dataclass
class Model:
    """What a file's checkpoint is, as its publisher's config or its class's default says; the commands that take it."""

    transformer: str
    heads: int
    commands: tuple[str, ...]
    cached: bool = True


MODELS = {
    "cosmos3": Model("Cosmos3OmniTransformer", 32, ("run",)),
    "hunyuanvideo1.5": Model("HunyuanVideo15Transformer3DModel", 16, ("run",)),
    "ideogram4": Model("Ideogram4Transformer2DModel", 18, ("run",)),
    "krea2": Model("Krea2Transformer2DModel", 48, ("run",)),
    "ltx-2": Model("LTX2VideoTransformer3DModel", 32, ("run",)),
    "lumina2": Model("Lumina2Transformer2DModel", 24, ("run",)),
    "minimax-h3": Model("MiniMaxH3Transformer3DModel", 56, ("run",)),
    "qwen-image": Model("QwenImageTransformer2DModel", 24, ("run",)),
    "sana": Model("SanaTransformer2DModel", 70, ("generate",)),
    "z-image": Model("ZImageTransformer2DModel", 30, ("run",)),
    "flux1-dev": Model("FluxTransformer2DModel", 24, ("run", "generate")),
    "flux2-dev": Model("Flux2Transformer2DModel", 48, ("run",), cached=False),
    "hunyuandit": Model("HunyuanDiT2DModel", 16, ("generate",)),
    "hunyuanvideo": Model("HunyuanVideoTransformer3DModel", 24, ("run",)),
    "pixart-sigma": Model("PixArtTransformer2DModel", 16, ("generate",)),
    "sd3.5-large": Model("SD3Transformer2DModel", 38, ("run", "generate")),
    "wan2.1-t2v": Model("WanTransformer3DModel", 40, ("run",)),
    "wan2.2-t2v": Model("WanTransformer3DModel", 40, ("run",)),
}
RANKS = (1, 2, 4, 8)
CASES = [(name, command, ranks) for name, model in MODELS.items() for command in model.commands for ranks in RANKS]


@pytest.fixture(scope="module", autouse=True)
def registered():
    register()


def path_of(name):
    return ROOT / "configs" / "models" / f"{name}.yaml"


def test_every_file_is_tested():
    assert {path.stem for path in ROOT.glob("configs/models/*.yaml")} == set(MODELS)
    assert JOBS and CACHES


def ready_to_run(path):
    """Options of `run`, checked as far as a model's class goes; nothing is loaded."""
    parser = run.runner_parser()
    argv = run.command_line(parser, ["--config", str(path), "--prompt", "x"])
    options = run.run_options(parser, argv)
    run.check(options)
    return options


def ready_to_generate(path, output):
    """Options of `generate`, checked up to the pipeline, which xDiT must have a wrapper for; nothing is loaded."""
    argv = ["--config", str(path), "--prompt", "x", "--output", str(output)]
    options = pipeline_options(generate.GenerateOptions, argv, generate.add_arguments)
    generate._Job(options)
    return options


@pytest.mark.parametrize("name, command, ranks", CASES)
def test_xdit_takes_every_layout(name, command, ranks, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setattr(offload.cpu, "has_accelerator", lambda: True)  # which the files are for
    options = ready_to_run(path_of(name)) if command == "run" else ready_to_generate(path_of(name), tmp_path)
    degrees, model = options.layout.degrees, MODELS[name]
    assert not model.heads % (degrees["ulysses_degree"] * degrees["tensor_parallel_degree"])
    assert (options.cache_method == "fastcache") == model.cached
    tried = all_tried()[model.transformer]
    assert not tried.why_not
    assert not [
        tried.refusal("", degree) for degree, value in degrees.items() if value > 1 and tried.refusal("", degree)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_a_file_says_whether_the_model_is_cached(name):
    assert f"# With the cache: {'yes' if MODELS[name].cached else 'no'}" in path_of(name).read_text()


@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_gpus_has_a_layout(name):
    assert tuple(read_yaml(path_of(name))["layouts"]) == RANKS


def test_degrees_as_flags_take_the_place_of_the_table(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    argv = ["--config", str(path_of("flux1-dev")), "--ring_degree=3", "--prompt", "x"]
    options = pipeline_options(generate.GenerateOptions, argv, generate.add_arguments)
    assert options.layout.degrees == dict.fromkeys(layout.DEGREES, 1) | {"ring_degree": 3, "cfg_degree": 1}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_jobs_name_real_options_and_files(path):
    from xfuser import xFuserArgs
    from xfuser.config import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    xFuserArgs.add_cli_args(parser)
    generate.add_arguments(parser)
    options = read_options(parser, str(path), [])
    assert options and (ROOT / options["prompts"]).is_file()
    if "cache_config" in options:
        cache_config(str(ROOT / options["cache_config"]))


@pytest.mark.parametrize("path", CACHES, ids=lambda path: path.name)
def test_cache_configs_load(path):
    assert isinstance(cache_config(str(path)), FastCacheConfig)
