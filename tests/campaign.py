"""Draw layouts, models, options, requests and faults, run them on real ranks, and check what is promised.

    python -m tests.campaign --minutes 120 --seed 1

Each run is drawn from the seed and its number alone, so that `--run NUMBER` repeats it. What is checked stands in
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.campaigning import jobs
from tests.campaigning.draw import Run, draw
from tests.campaigning.ranks import Ranks

SHOWN = 1500  # characters of each problem


class Campaign:
    """Runs, and what became of them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.ranks = {count: Ranks(count) for count in (2, 4)}
        self.kinds: Counter[str] = Counter()
        self.faults = 0

    def carry_out(self, run: Run) -> None:
        """Run one, and print what it was and what does not hold."""
        began = time.monotonic()
        print(run.words, end=" ", flush=True)
        ended, problems = jobs.carry_out(run) if run.kind == "job" else self.on_ranks(run)
        print(f"-> {ended}, {time.monotonic() - began:.0f} s", flush=True)
        self.kinds[f"{run.kind}, {run.fault}: {ended}"] += 1
        if problems:
            self.faults += 1
            print("FAULT", *(problem[-SHOWN:] for problem in problems), sep="\n  ")
            print(f"  repeat it: python -m tests.campaign --seed {run.seed} --run {run.number}", flush=True)

    def on_ranks(self, run: Run) -> tuple[str, list[str]]:
        """Run one on ranks that are kept; ranks of another number make room first."""
        for count, ranks in self.ranks.items():
            if count != run.ranks:
                ranks.stop()
        return self.ranks[run.ranks].run(run)

    def close(self) -> None:
        """End all ranks, and print how many runs of each kind there were."""
        for ranks in self.ranks.values():
            ranks.stop()
        for kind, count in sorted(self.kinds.items()):
            print(f"{count:5d}  {kind}")
        print(f"{sum(self.kinds.values())} runs, {self.faults} with faults, seed {self.seed}")


def numbers(minutes: float, first: int, clock=time.monotonic) -> Iterator[int]:
    """Count up from `first` until the time is over."""
    end = clock() + 60 * minutes
    return itertools.takewhile(lambda _: clock() < end, itertools.count(first))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="no run begins after so many; default: 10")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn; default: 0")
    parser.add_argument("--first", type=int, default=0, help="number of the first run; default: 0")
    parser.add_argument("--run", type=int, help="run this number alone")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    campaign = Campaign(options.seed)
    chosen = numbers(options.minutes, options.first) if options.run is None else [options.run]
    try:
        for number in chosen:
            campaign.carry_out(draw(options.seed, number))
    finally:
        campaign.close()
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    sys.exit(main())
