"""`fastcache_xdit` as users start it, but that some ranks run out of memory amid some items."""

from __future__ import annotations

import json
import os

from fastcache_xdit.cli.main import entry
from fastcache_xdit.host.xdit import world
from fastcache_xdit.jobs.replica import Replica

VARIABLE = "SABOTAGE"  # {item: ranks}, as JSON
CALL = 2  # of the transformer, in which it happens


def sabotage(ranks_of: dict[str, list[int]]) -> None:
    """Have the transformer raise on these ranks while it makes these items."""
    make = Replica._images

    def images(self, items):
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == CALL and world.rank() in ranks_of.get(str(items[0].id), []):
                raise MemoryError(f"no room for item {items[0].id}")

        hook = self.pipe.transformer.register_forward_pre_hook(fail)
        try:
            return make(self, items)
        finally:
            hook.remove()

    Replica._images = images


if __name__ == "__main__":
    sabotage(json.loads(os.environ[VARIABLE]))
    entry()
