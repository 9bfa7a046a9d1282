"""`batch`: what users say, and what they are told; no model is loaded."""

from __future__ import annotations

import json

import pytest

from fastcache_xdit.cli.main import main
from fastcache_xdit.host.xdit.replica import check_machines
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.jobs.store import Store
from tests import tiny
from tests.jobs.jobs import FIGURES, outcomes

PROMPTS = (
    '{"prompt": "a red circle"}\n{"prompt": "a blue square", "steps": 0}\n{"prompt": "x", "seed": 5, "width": 64}\n'
)


@pytest.fixture
def run(capsys):
    def run(*words):
        """(exit code, what was printed, what was complained of) of `batch` with these words."""
        code = main(["batch", *map(str, words)])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, told.out, told.err

    return run


@pytest.fixture
def submit(run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)

    def submit(*words):
        job, prompts = tmp_path / "job", tmp_path / "prompts.jsonl"
        return run("submit", job, "--model", "shapes-pixart", "--prompts", prompts, *words)

    return submit


def test_submit_settles_what_makes_the_images(submit, tmp_path):
    code, told, _ = submit("--cache", "fastcache", "--seed", 3, "--batch_size", 2, "--ulysses_degree", 2)
    assert code == 0 and "3 items, 1 of them failed already" in told and f"batch run {tmp_path / 'job'}" in told
    recipe = Recipe.load(tmp_path / "job")
    assert (recipe.seed, recipe.batch_size, recipe.engine) == (3, 2, {"ulysses_degree": 2})
    assert recipe.cache["test"] == "plan" and recipe.call["guidance_scale"] == 2.5
    first, bad, last = Store(tmp_path / "job").items()
    assert (first.seed, first.width, first.steps) == (3, 128, 20) and (last.seed, last.width) == (5, 64)
    assert "'steps'" in bad.error


def test_a_goal_is_settled_at_submit(submit, run, tmp_path):
    (tmp_path / "job.yaml").write_text("cache: fastcache\npsnr: 36\n")
    assert submit("--config", tmp_path / "job.yaml")[0] == 0
    recipe = Recipe.load(tmp_path / "job")
    assert (recipe.config.psnr, recipe.config.budget, recipe.engine) == (36, None, {}) and recipe.learns
    code, _, told = run("run", tmp_path / "job", "--budget", 0.4)
    assert code == 2 and "--budget was settled" in told
    assert "nothing is learnt yet" in run("status", tmp_path / "job")[1]


@pytest.mark.parametrize("config", ['{"test": "paper"}', '{"schedule": {"4": "1010"}}'])
def test_a_job_that_plans_nothing_learns_nothing(submit, run, tmp_path, config):
    submit("--cache", "fastcache", "--cache_config", config)
    assert not Recipe.load(tmp_path / "job").learns
    assert "learnt" not in run("status", tmp_path / "job")[1]


def test_a_config_file_holds_options_and_relative_paths_are_made_absolute(submit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = tiny.checkpoint("flux", "model")
    (tmp_path / "job.yaml").write_text("num_inference_steps: 7\nheight: 64\nwidth: 64\nulysses_degree: 2\n")
    assert submit("--config", "job.yaml", "--model", model)[0] == 0
    recipe = Recipe.load(tmp_path / "job")
    assert recipe.model == str(tmp_path / "model") and recipe.call["num_inference_steps"] == 7
    assert recipe.engine == {"ulysses_degree": 2} and recipe.cache is None


def test_status_retry_and_export_follow_a_job(submit, run, tmp_path):
    submit()
    job, store = tmp_path / "job", Store(tmp_path / "job")
    assert run("status", job)[0] == 75, "not over"
    desk = StoreDesk(store)
    for _ in range(2):
        desk.deliver(outcomes(desk.next().items), FIGURES)
    code, told, _ = run("status", job)
    assert code == 3 and "2 of 3 images done, 1 failed, hit rate 25%" in told and "'a blue square'" in told
    assert json.loads(run("status", job, "--json")[1])["done"] == 2
    assert run("export", job, "--output", tmp_path / "table.csv")[0] == 0
    (job / "images" / "000002.png").write_bytes(b"half")
    code, told, _ = run("export", job, "--output", tmp_path / "table.csv")
    assert code == 3 and "1 images are gone or altered" in told
    code, told, _ = run("retry", job)
    assert code == 0 and "1 items wait again; 1 were bad lines" in told


@pytest.mark.parametrize(
    "words, sentences",
    [
        ([], ["which action?", "batch ACTION --help", "submit, run, status, retry, export"]),
        (["paint"], ["unknown action 'paint'", "submit, run, status, retry, export"]),
        (["status", "/no/such"], ["no job in /no/such", "batch submit"]),
        (["run", "/no/such"], ["no job in /no/such"]),
        (["export", "JOB"], ["--output"]),
        (["export", "JOB", "--output", "x.xlsx"], [".jsonl, .csv, .parquet", "not as .xlsx"]),
        (["submit", "JOB", "--model", "shapes-pixart", "--prompts", "PROMPTS"], ["holds a job already"]),
        (["submit", "NEW", "--model", "shapes-pixart"], ["no prompts", "--prompts FILE"]),
        (["submit", "NEW", "--model", "shapes-pixart", "--prompt", "x"], ["instead of --prompt"]),
        (["submit", "NEW", "--prompts", "PROMPTS"], ["no model"]),
        (["submit", "NEW", "--model", "/no/such", "--prompts", "PROMPTS"], ["no such model: /no/such"]),
        (["submit", "NEW", "--model", "shapes-pixart", "--prompts", "none.csv"], ["no such prompts file: none.csv"]),
        (
            ["submit", "NEW", "--model", "shapes-pixart", "--prompts", "PROMPTS", "--cache", "teacache"],
            ["batch knows --cache fastcache only"],
        ),
        (
            ["submit", "NEW", "--model", "shapes-pixart", "--prompts", "PROMPTS", "--batch_size", 0],
            ["batch_size=0 is not possible"],
        ),
        (["run", "JOB", "--seed", 3], ["--seed was settled when the job was submitted"]),
        (["run", "JOB", "--num-inference-steps=3"], ["--num_inference_steps was settled"]),
        (["run", "JOB", "--ulysses_degree", 2], ["ulysses_degree=2 needs 2 ranks, but 1 was started"]),
        (["run", "JOB", "--replicas", 2], ["--replicas counts those of --ray", "--data_parallel_degree"]),
        (["run", "JOB", "--ray", "--replicas", 0], ["replicas=0 is not possible"]),
        (["run", "JOB", "--ray", "--data_parallel_degree", 2], ["with --ray set --replicas"]),
        (["run", "JOB", "--ray", "127.0.0.1:1"], ["no Ray cluster at 127.0.0.1:1", "HOST:PORT"]),
        (["run", "JOB", "--ray", "ray://head:10001"], ["no Ray cluster at ray://head:10001"]),
        (["run", "JOB", "--max_attempts", 0], ["max_attempts=0 is not possible"]),
        (["run", "JOB", "--use_fast_attn"], ["use_fast_attn with fastcache is not supported"]),
    ],
)
def test_mistakes_are_told(submit, run, tmp_path, words, sentences):
    submit("--cache", "fastcache")
    places = {"JOB": tmp_path / "job", "NEW": tmp_path / "new", "PROMPTS": tmp_path / "prompts.jsonl"}
    code, _, told = run(*(places.get(word, word) for word in words))
    assert code == 2 and all(sentence in told for sentence in sentences), told
    assert not (tmp_path / "new" / "job.sqlite").exists()


def test_replicas_of_several_machines_are_sent_to_ray():
    check_machines(1, {"GROUP_WORLD_SIZE": "4"})
    check_machines(4, {"GROUP_WORLD_SIZE": "1"})
    with pytest.raises(ValueError, match="2 replicas on 4 machines cannot share the job's files.*--ray"):
        check_machines(2, {"GROUP_WORLD_SIZE": "4"})
