"""The command line, with a fault that environment variable CAMPAIGN_FAULT describes: its kind, rank, and step number.

`exception` and `nan` happen in the scheduler of diffusers, in the step that one rank, or all of them, take as their
number `after`; with `full disk` no file can grow beyond a few bytes from the start.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

LIMIT = 64  # KiB: less than an image, enough for what torchrun and logs write
WORDS = "made by the campaign"


def main() -> int:
    fault = json.loads(os.environ["CAMPAIGN_FAULT"])
    if fault["kind"] == "full disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))
    else:
        _break_scheduler(**fault)
    from fastcache_xdit.cli.main import main

    return main(sys.argv[1:])


def _break_scheduler(kind: str, rank: int | None, after: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    plain, taken = DPMSolverMultistepScheduler.step, 0

    def step(self: Any, output: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == after and rank in (None, int(os.environ.get("RANK", "0"))):
            if kind == "exception":
                raise RuntimeError(WORDS)
            output = output * float("nan")
        return plain(self, output, *args, **kwargs)

    DPMSolverMultistepScheduler.step = step


if __name__ == "__main__":
    sys.exit(main())
