"""A user's mistake: one clear line on one rank, exit code 2, no traceback, before any model loads."""

from argparse import Namespace

import pytest

from fastcache_xdit.cli import generate as command
from fastcache_xdit.cli import offload
from fastcache_xdit.cli.main import main
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import loading
from shapes.loading import calibration_path
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.checkpoint("flux", tmp_path_factory.mktemp("checkpoint") / "flux"))


@pytest.fixture(autouse=True)
def nothing_loads(monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(command.engine, "Engine", loaded)


def run(capsys, *argv):
    """(exit code, standard error) of one command line in this process."""
    try:
        code = main([str(word) for word in argv])
    except SystemExit as exit_:
        code = exit_.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.err


CACHED = ("--cache", "fastcache")
RUN = ("run", "--model", "FLUX.1-dev", "--prompt", "x")
QWEN = ("run", "--model", "Qwen-Image", "--prompt", "x", "--height", 64, "--width", 64)
GENERATE = ("generate", "--model", "shapes-pixart", "--prompt", "a red circle on a dark background")


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], ["COMMAND"]),
        (["paint"], ["unknown command 'paint'", "generate"]),
        ([*GENERATE, "--colour", "red"], ["unknown option '--colour'; --help lists the options"]),
        ([*GENERATE, "--cache", "slowcache"], ["--cache takes no 'slowcache'", "'fastcache'"]),
        ([*GENERATE, "--cache", "teacache"], ["fastcache only, not teacache", "run"]),
        ([*GENERATE, "--cache", "fastcache", "--cache_config", '{"bugdet": 1}'], ["did you mean 'budget'?"]),
        ([*GENERATE, "--cache", "fastcache", "--cache_config", "none.yaml"], ["no such config file: none.yaml"]),
        ([*GENERATE, *CACHED, "--threshold", 0], ["--threshold is of xDiT's DiTFastAttn", "--budget"]),
        ([*GENERATE, *CACHED, "--threshold=0.3"], ["no effect with --cache fastcache"]),
        (
            [*GENERATE, *CACHED, "--warmup_steps", 5],
            ["of xDiT's PipeFusion", """--cache_config '{"warmup_steps": 5}'"""],
        ),
        ([*RUN, *CACHED, "--warmup_steps", 5], ["of xDiT's PipeFusion", "no effect without it"]),
        ([*GENERATE, "--cache_config", "third"], ["--cache_config without --cache", "add --cache fastcache"]),
        ([*RUN, "--cache_config", "{}"], ["--cache_config without --cache", "add --cache fastcache"]),
        ([*GENERATE, *CACHED, "--cache_config", "thrid"], ["shapes-pixart has no preset 'thrid'", "mean 'third'?"]),
        ([*GENERATE, *CACHED, "--cache_config", "best"], ["no preset 'best'; it has quality, half, balanced, third"]),
        ([*RUN, *CACHED, "--cache_config", "third"], ["no such config file: third", "fastcache-xdit presets lists"]),
        (["presets", "shapes-flax"], ["no shipped model is called 'shapes-flax'", "shapes-flux"]),
        ([*GENERATE, "--compare"], ["add --cache fastcache"]),
        ([*GENERATE, "--negative_prompt", "a", "b"], ["one text for all prompts, not 2", "in quotes"]),
        ([*GENERATE, "--budget", 0.4], ["--budget is a goal of the cache", "add --cache fastcache"]),
        (["run", "--model", "FLUX.1-dev", "--prompt", "x", "--psnr", 36], ["--psnr is a goal of the cache"]),
        ([*GENERATE, *CACHED, "--budget", "much"], ["invalid float value: 'much'"]),
        ([*GENERATE, *CACHED, "--budget", 1.4], ["budget", "1.4"]),
        ([*GENERATE, *CACHED, "--budget", 0.4, "--psnr", 36], ["budget and psnr are both given", "give one goal"]),
        ([*GENERATE, *CACHED, "--speedup", 2, "--cache_config", '{"psnr": 36}'], ["speedup and psnr are both given"]),
        ([*GENERATE, *CACHED, "--speedup", 2, "--cache_config", '{"test": "paper"}'], ["not to 'paper'"]),
        (
            [*GENERATE, "--ulysses_degree", 2],
            ["ulysses_degree=2 needs 2 ranks, but 1 was started"],
        ),
        ([*GENERATE, "--ulysses_degree", "two"], ["invalid int value: 'two'"]),
        ([*GENERATE, "--ring_degree", -1], ["ring_degree=-1 is not possible"]),
        ([*GENERATE, "--num_inference_steps", 0], ["num_inference_steps=0 is not possible"]),
        ([*GENERATE, "--batch_size", 0], ["batch_size=0 is not possible"]),
        ([*GENERATE, "--config", "none.yaml"], ["no such config file: none.yaml"]),
        ([*GENERATE, "--prompts", "none.txt"], ["no such prompts file: none.txt"]),
        (["generate", "--model", "shapes-pixart"], ["no prompts", "--prompts FILE"]),
        (["generate", "--prompt", "x"], ["--model"]),
        (["generate", "--model", "/no/such/folder", "--prompt", "x"], ["/no/such/folder", "shapes-pixart"]),
        ([*GENERATE, "--cache", "fastcache", "--use_fast_attn"], ["use_fast_attn with fastcache is not supported"]),
        (["run", "--model", "/no/such", "--cache", "fastcache"], ["/no/such", "FLUX.1-dev"]),
        ([*RUN, "--use_fp8_gemms"], ["use_fp8_gemms cannot be used without accelerator"]),
        (["run", "--model", "FLUX.1-dev"], ["xDiT's runner refuses", "'prompt'"]),
    ],
)
def test_mistakes_are_told(capsys, argv, words):
    code, told = run(capsys, *argv)
    assert code == 2
    assert all(word in told for word in words), told


@pytest.mark.parametrize("flag", offload.FLAGS)
def test_offload_without_effect_is_told(capsys, monkeypatch, flag):
    for argv in (GENERATE, RUN):
        code, told = run(capsys, *argv, f"--{flag}")
        assert code == 2 and f"--{flag}: there is no accelerator here" in told
    monkeypatch.setattr(offload.cpu, "has_accelerator", lambda: True)  # said on a machine that has one
    with pytest.raises(UsageError, match=f"--{flag} has no effect in this command.*take the command run"):
        offload.check_offload(Namespace(**dict.fromkeys(offload.FLAGS) | {flag: True}), by_runner=False)
    offload.check_offload(Namespace(**dict.fromkeys(offload.FLAGS) | {flag: True}), by_runner=True)


@pytest.mark.parametrize(
    "world, flags, words",
    [
        (3, ["--ulysses_degree", 3], ["4 attention heads", "do not divide by ulysses x tensor parallel = 3"]),
        (2, ["--use_cfg_parallel"], ["FLUX.1 runs no second guidance branch"]),
        (2, ["--pipefusion_parallel_degree", 2, "--num_pipeline_patch", 1], ["num_pipeline_patch=1", "at least 2"]),
        (
            2,
            ["--pipefusion_parallel_degree", 2, "--cache_config", '{"test": "paper", "granularity": "block"}'],
            ["pp_decision=leader with granularity=block", "set pp_decision=stage or granularity=step"],
        ),
        (2, ["--pipefusion_parallel_degree", 2, "--warmup_steps", 0], ["warmup_steps=0 is not", "at least 1"]),
        (2, [], ["2 ranks were started", "add --ulysses_degree 2"]),
        (4, ["--ulysses_degree", 2], ["ulysses_degree=2 needs 2 ranks, but 4 were started"]),
    ],
)
@pytest.mark.parametrize("name", ["generate", "run"])
def test_impossible_layouts_are_told(capsys, monkeypatch, folder, name, world, flags, words):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    code, told = run(capsys, name, "--model", folder, "--prompt", "x", "--cache", "fastcache", *flags)
    assert code == 2
    assert all(word in told for word in words), told


def test_ranks_that_share_a_picture_need_guidance(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = [*GENERATE, "--guidance_scale", 1.0]
    code, told = run(capsys, *argv, "--ulysses_degree", 2)
    assert code == 2 and "guidance_scale=1 is not supported where ranks share one picture" in told


def test_a_single_step_needs_a_scheduler_for_it(capsys):
    code, told = run(capsys, *GENERATE, "--num_inference_steps", 1)
    assert code == 2 and "fails with PixArtAlphaPipeline and DPMSolverMultistepScheduler; take 2 steps or more" in told


def test_sharded_parameters_are_refused_before_a_model_loads(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    sharded = ["--ulysses_degree", 2, "--fully_shard_degree", 2]
    code, told = run(capsys, "run", "--model", "FLUX.2-dev", "--prompt", "x", "--cache", "fastcache", *sharded)
    assert code == 2 and "fully_shard_degree > 1 with fastcache is not supported yet" in told


def test_videos_are_told_which_layouts_they_have(capsys, monkeypatch, tmp_path):
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]}'
    )
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for flags in (["--pipefusion_parallel_degree", 2], ["--use_cfg_parallel"]):
        code, told = run(capsys, "generate", "--model", tmp_path, "--prompt", "x", "--cache", "fastcache", *flags)
        assert code == 2 and "for Wan2.1-T2V; it has ulysses, ring, data" in told


def test_a_model_that_cannot_be_had_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    for argv in ([*QWEN, *CACHED], [*QWEN, *CACHED, "--num_inference_steps", 8]):
        code, told = run(capsys, *argv)
        assert code == 2 and len(told.splitlines()) == 1
        assert "Qwen/Qwen-Image is not on this machine, and the hub cannot be reached" in told
    with pytest.raises(UsageError, match="some/model is not on this machine.*hf download some/model"):
        loading.load_pipeline("some/model", None, "float32")


def test_what_a_model_of_the_runner_cannot_do_is_told_by_its_name(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, told = run(capsys, *QWEN, *CACHED, "--pipefusion_parallel_degree", 2)
    assert code == 2 and "Qwen/Qwen-Image does not support pipefusion_parallel_degree" in told
    monkeypatch.setenv("WORLD_SIZE", "1")
    code, told = run(capsys, "run", "--model", "Qwen-Imag", "--prompt", "x")
    assert code == 2 and "no such model: Qwen-Imag; did you mean 'Qwen-Image'?" in told


def test_only_the_first_rank_speaks(capsys, monkeypatch):
    for rank, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        for argv in ([*GENERATE, "--batch_size", 0], [*GENERATE, "--ulysses_degree", "two"], ["paint"]):
            code, told = run(capsys, *argv)
            assert code == 2 and bool(told) == speaks


def test_pipelines_without_transformer_are_refused(capsys, tmp_path, folder):
    index = tmp_path / "model_index.json"
    index.write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}')
    code, told = run(capsys, "generate", "--model", tmp_path, "--prompt", "x", "--cache", "fastcache")
    assert code == 2 and "without transformer" in told


@pytest.mark.parametrize(
    "text, words",
    [
        ("ulyses_degree: 2", ["config.yaml: unknown option 'ulyses_degree'; did you mean 'ulysses_degree'?"]),
        ("cache: slowcache", ["config.yaml: cache must be one of", "not 'slowcache'"]),
        ("psnr: 36", ["--psnr is a goal of the cache", "add --cache fastcache"]),
        ("- a list", ["config.yaml: a config file is a mapping"]),
        ("cache: fastcache\ncache_config: {bugdet: 1}", ["did you mean 'budget'?"]),
        ("layouts: {2: {}, 4: {}}", ["config.yaml: no layout for 1 rank; there are layouts for 2, 4"]),
        ("layouts: [1, 2]", ["config.yaml: layouts is a table", "2: {ulysses_degree: 2}"]),
        ("layouts: {1: {ulyses_degree: 1}}", ["did you mean 'ulysses_degree'?"]),
    ],
)
@pytest.mark.parametrize("command", [GENERATE, ("run", "--model", "FLUX.1-dev")], ids=["generate", "run"])
def test_mistakes_in_a_config_file_are_told(capsys, tmp_path, command, text, words):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    code, told = run(capsys, *command, "--config", file)
    assert code == 2
    assert all(word in told for word in words), told


def test_earlier_results_are_not_overwritten(capsys, tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    code, told = run(capsys, *GENERATE, "--output", tmp_path)
    assert code == 2 and "--overwrite" in told


CALIBRATE = ("calibrate", "--model", "shapes-pixart", "--prompt", *["a red circle"] * 12)
TUNE = ("tune", "--model", "shapes-pixart", "--prompt", "a red circle", "--output", "x.yaml")


@pytest.mark.parametrize(
    "argv, words",
    [
        (CALIBRATE, ["nowhere to write", "--output FILE.safetensors"]),
        ([*CALIBRATE[:4], "one", "--output", "x"], ["1 prompts in batches of 4 are too few", "at least 12"]),
        (
            [*CALIBRATE, "--output", "x", "--pipefusion_parallel_degree", 2],
            ["pipefusion_parallel_degree=2", "--stages"],
        ),
        (TUNE, ["--calibration is missing"]),
        ([*TUNE, "--calibration", "none.safetensors"], ["--target is missing"]),
        (
            [*TUNE, "--polish", 8, "--calibration", calibration_path("shapes-pixart"), "--target", "budget=0.5"],
            ["--polish needs prompts to train on", "--refit_prompts FILE"],
        ),
        ([*TUNE, "--polish", -1], ["polish=-1 is not possible; set 0 or more"]),
        ([*TUNE, "--steps", 20, 0], ["steps=0 is not possible; set 1 or more"]),
        ([*CALIBRATE, "--output", "x", "--stages", 1, 0], ["stages=0 is not possible; set 1 or more"]),
        (["bench", "peers", "--model", "shapes-pixart", "--count", 0], ["count=0 is not possible; set 1 or more"]),
        (["bench", "overhead", "--model", "shapes-pixart", "--repeats", 0], ["repeats=0 is not possible"]),
        ([*TUNE, "--calibration", "none.safetensors", "--target", "fast"], ["target 'fast' is not known", "speedup="]),
        ([*TUNE, "--calibration", "none.safetensors", "--target", "psnr=30"], ["no such calibration file: none"]),
        (["bench", "speed", "--repetitions", 0], ["repetitions=0 is not possible; set 1 or more"]),
        (["bench", "speed", "--only", "nobody"], ["no cache has nobody in its name", "fewer steps"]),
        (
            ["bench", "peers", "--model", "shapes-pixart", "--only", "MagCache", "--settings", "1/9"],
            ["no setting has 1/9 in it", "max_skip_steps 6"],
        ),
        (["bench"], ["which benchmark?", "approximations"]),
        (["bench", "approximations", "--model", "some/model"], ["shipped models only"]),
        ([*GENERATE, "--cache", "fastcache", "--cache_config", '{"test": "none"}'], ["give schedule"]),
        ([*GENERATE, "--cache", "fastcache", "--cache_config", '{"stand_in": "affine"}'], ["fastcache-xdit calibrate"]),
        (
            [*GENERATE, "--cache", "fastcache", "--cache_config", '{"schedule": {"4": "0110"}}'],
            ["the mask for 4 steps", "the first one 1"],
        ),
        (
            [*GENERATE, "--cache", "fastcache", "--cache_config", '{"calibration": "none.safetensors"}'],
            ["no such calibration file: none.safetensors"],
        ),
    ],
)
def test_mistakes_of_tuning_are_told(capsys, argv, words):
    code, error = run(capsys, *argv)
    assert code == 2 and all(word in error for word in words), error


def test_ranks_are_told_who_can_polish(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = ["--calibration", calibration_path("shapes-pixart"), "--target", "budget=0.5"]
    code, told = run(capsys, *TUNE, "--polish", 8, *found, "--refit_prompts", "none.txt")
    assert code == 2 and "which 2 ranks cannot; run tune in one process" in told
