"""`bench peers` from the command line: resumed, refused under other conditions, and on two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcache_xdit.bench.peers.catalogue import catalogue
from fastcache_xdit.cli.bench_peers import chosen, with_settings

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--model", "shapes-pixart", "--count", 1, "--batch_size", 1, "--repetitions", 2, "--num_inference_steps", 4]


def bench(folder, *words, ranks=1):
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    line = [*start, "-m", "fastcache_xdit", "bench", "peers", *SMALL, "--output", folder, *words]
    return subprocess.run(
        list(map(str, line)), cwd=ROOT, capture_output=True, text=True, timeout=600, env={**os.environ}
    )


def rows(folder):
    (path,) = folder.rglob("results.jsonl")
    return {(row["peer"], row["setting"]): row for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("peers")
    done = bench(made, "--only", "fixed", "DBPrune", "--quick")
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def test_every_setting_has_a_line(folder):
    found = rows(folder)
    assert ("uncached", "") in found
    assert found["fixed interval (FORA-style)", "1/2"]["compute"] == pytest.approx(0.5)
    assert found["fixed interval (FORA-style)", "1/2"]["speedup"]["repetitions"] == 2
    (conditions,) = folder.rglob("conditions.json")
    assert json.loads(conditions.read_text())["count"] == 1, "--count wins over --quick"
    assert {path.name for path in folder.rglob("*") if path.is_file()} >= {"results.csv", "frontier.png"}


def test_settings_are_chosen_by_their_names():
    peers = with_settings(chosen(catalogue({}), ["L2P", "fewer steps, UniPC", "EasyCache"]), ["1/3"])
    found = {peer.name: [setting.label for setting in peer.settings] for peer in peers}
    assert found["fewer steps, UniPC"] == ["1/3"] and found["EasyCache (reimplemented)"] == []
    assert found["L2P (reimplemented)"] == ["1/3", "1/3, even", "1/3, closed loop"]


def test_what_is_there_is_not_run_again(folder):
    before = rows(folder)
    done = bench(folder, "--only", "fixed", "--quick")
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(folder) == before


def test_other_conditions_are_one_line(folder):
    done = bench(folder, "--seed", 7, "--quick")
    assert done.returncode == 2
    assert "another seed" in done.stderr


def test_two_ranks_leave_out_what_decides_apart(tmp_path):
    done = bench(tmp_path, "--ulysses_degree", 2, "--quick", "--only", "fixed", "DBPrune", ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    found = rows(tmp_path)
    assert found["cache-dit DBPrune", "R0.08"]["status"] == "left out"
    fixed = found["fixed interval (FORA-style)", "1/2"]
    assert fixed["compute"] == pytest.approx(0.5, abs=0.01)
    assert fixed["restored"]
