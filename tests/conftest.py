"""Settings for every test: one thread, nothing fetched from the network."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["FASTCACHE_HOME"] = tempfile.mkdtemp(prefix="fastcache-home-")  # nothing of the user's is read or written

import torch  # noqa: E402  the environment must be set before the libraries read it

torch.set_num_threads(1)

# How long an example takes is the machine's affair.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Files that start a Ray cluster, of which a machine has one at a time, or compare with the same undisturbed job.
TOGETHER = (
    "jobs/test_ray.py",
    "jobs/test_kills.py",
    "jobs/test_learning.py",
    "parallel/test_ray.py",
    "test_clusters.py",
)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Give each file to one of the processes that run tests side by side, whose ranks it starts once."""
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        item.add_marker(pytest.mark.xdist_group("together" if file in TOGETHER else file))
