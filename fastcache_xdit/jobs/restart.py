"""Start the ranks of a replica again: each one's process runs its command line anew, under the same launcher."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import NoReturn

from fastcache_xdit.host.xdit import world

VARIABLE = "FASTCACHE_START"  # hands the count on
MOST_IN_VAIN = 10  # starts in a row without an item settled in between: then it is not the items


@dataclass(frozen=True)
class Start:
    """Which start of a replica this is.

    Attributes:
        number: from 0.
        in_vain: how many starts in a row before it settled no item.
        settled: how many items were settled when it began.
    """

    number: int = 0
    in_vain: int = 0
    settled: int = -1

    @classmethod
    def of_this_process(cls) -> Start:
        """Read it as the process before handed it on."""
        return cls(*map(int, os.environ.pop(VARIABLE, "").split()))

    def after(self, settled: int) -> Start:
        """Return the start after this one, which ended when so many items were settled."""
        return Start(self.number + 1, self.in_vain + 1 if settled <= self.settled else 0, settled)

    @property
    def is_worth_it(self) -> bool:
        """Whether it may help."""
        return self.in_vain < MOST_IN_VAIN

    def __str__(self) -> str:
        return f"{self.number} {self.in_vain} {self.settled}"


def is_possible() -> bool:
    """Tell whether the store in which ranks meet outlives them, as torchrun's does."""
    return world.size() > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def run_again(start: str, replica: int, replicas: int) -> NoReturn:
    """Run this process's command line in its place, from any thread, whatever the others are stuck in."""
    place = {"RANK": replica * world.size() + world.rank(), "WORLD_SIZE": replicas * world.size()}
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}, VARIABLE: start}
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:  # locks are free and connections closed for those who look at them
            _close_on_exec(int(name))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _close_on_exec(descriptor: int) -> None:
    try:
        os.set_inheritable(descriptor, False)
    except OSError:  # the one that listed them is closed by now
        return
