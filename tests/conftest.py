"""Settings for every test: one thread, nothing fetched from the network."""

from __future__ import annotations

import os
import tempfile

from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["FASTCACHE_HOME"] = tempfile.mkdtemp(prefix="fastcache-home-")  # nothing of the user's is read or written

import torch  # noqa: E402  the environment must be set before the libraries read it

torch.set_num_threads(1)

# How long an example takes is the machine's affair.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
