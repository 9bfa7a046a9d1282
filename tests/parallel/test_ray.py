"""`--cache fastcache` in a script that uses xDiT's RayDiffusionPipeline: its workers cache as one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.parallel.launch import ROOT, free_port, only_cluster

LIMIT = 600


def test_xdits_own_ray_workers_cache(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    driver = Path(__file__).with_name("ray_driver.py")
    command = [sys.executable, driver, tmp_path]
    with only_cluster():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "result.json").read_text())
    skipped = {report.split(" (")[0] for report in found["reports"]}
    assert len(skipped) == 1 and "approximated 0 " not in skipped.pop(), found["reports"]
    assert found["difference"] < 0.01, "of 255; rounding apart, what a single process makes"
