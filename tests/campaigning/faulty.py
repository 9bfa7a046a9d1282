"""The command line, with a fault that environment variable CAMPAIGN_FAULT describes: its kind, rank, and call number.

`exception` and `nan` happen to the transformer, in the call that one rank, or all of them, make as their number
`after`; with `full disk` no file can grow beyond a few bytes from the start.
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
        _break_transformer(**fault)
    from fastcache_xdit.cli.main import main

    return main(sys.argv[1:])


def _break_transformer(kind: str, rank: int | None, after: int, once: str) -> None:
    """A hook, because xDiT puts schedulers and transformers of its own in the place of those of diffusers.

    An exception comes `once`: the file of this name is made then, and a process that is started again finds it.
    """
    from torch.nn.modules.module import register_module_forward_hook

    taken = 0

    def broken(module: Any, args: Any, output: Any) -> Any:
        nonlocal taken
        if "PixArtTransformer2D" not in type(module).__name__:
            return None
        taken += 1
        if taken != after or rank not in (None, int(os.environ.get("RANK", "0"))):
            return None
        if kind == "nan":
            return tuple(part * float("nan") for part in output)
        if os.path.exists(once):
            return None
        open(once, "x").close()
        raise RuntimeError(WORDS)

    register_module_forward_hook(broken)


if __name__ == "__main__":
    sys.exit(main())
