"""Run a job on the ranks that torchrun started, or in this process alone."""

from __future__ import annotations

from pathlib import Path

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import world
from fastcache_xdit.host.xdit.loading import XditOptions
from fastcache_xdit.host.xdit.replica import join
from fastcache_xdit.host.xdit.watch import Watch
from fastcache_xdit.jobs.desk import StoreDesk
from fastcache_xdit.jobs.ending import Ending
from fastcache_xdit.jobs.progress import Bar, describe
from fastcache_xdit.jobs.recipe import Recipe, printable
from fastcache_xdit.jobs.replica import Replica
from fastcache_xdit.jobs.restart import Start
from fastcache_xdit.jobs.stop import Stop, end_with_launcher, is_under_torchrun
from fastcache_xdit.jobs.store import Store
from fastcache_xdit.jobs.worker import work

ALL_DONE, SOME_FAILED, NOT_OVER = 0, 3, 75  # exit codes; 75 is EX_TEMPFAIL: call again, and it goes on


def run(folder: Path, xdit: XditOptions, max_attempts: int) -> int:
    """Work on the job in `folder` with these options of xDiT's on every rank; return the exit code."""
    end_with_launcher()
    start = Start.of_this_process()
    with Stop() as stop:
        number = join(xdit.data_parallel_degree, start.number)
        store = Store(folder) if world.rank() == 0 else None
        if any(world.all_gather_objects(store is not None and store.is_over())):
            finished = True
        else:
            ending = Ending(folder, start, stop, number, xdit.data_parallel_degree)
            finished = _work(folder, store, xdit, max_attempts, ending)
    code = world.all_gather_objects(exit_code(store) if store else None)[0]
    if store and number == 0:
        print(f"fastcache: {closing_line(store, folder, finished)}", flush=True)
    world.finish()
    return _for_torchrun(code)


def exit_code(store: Store) -> int:
    """Translate a job's state for a caller."""
    if not store.is_over():
        return NOT_OVER
    return SOME_FAILED if store.counts()["failed"] else ALL_DONE


def _for_torchrun(code: int) -> int:
    """torchrun takes every code but 0 for a crash, tears down what is left, and may start it all again."""
    return ALL_DONE if is_under_torchrun() and code == SOME_FAILED else code


def closing_line(store: Store, folder: Path, finished: bool) -> str:
    """Say how a run ended, and what to do next."""
    counts = store.counts()
    parts = [describe(counts, store.totals())]
    parts += [f"reasons: fastcache-xdit batch status {folder}"] if counts["failed"] else []
    parts += ["stopped; the same command goes on"] if not finished else []
    return "; ".join(parts)


def _work(folder: Path, store: Store | None, xdit: XditOptions, max_attempts: int, ending: Ending) -> bool:
    recipe = Recipe.load(folder)
    replica = Replica(recipe, xdit, folder)
    desk = ending.desk = StoreDesk(store, max_attempts) if store else None
    bar = Bar(store, ending.replica == 0)
    watch = Watch(recipe.lease, desk.beat if desk else lambda: None, ending.come)
    try:
        with watch.following(replica.pipe):
            finished = work(replica, desk, lambda: ending.stop.asked, bar.show, watch.mark)
    except (UsageError, OSError):  # the user's mistake, or a full disk: no attempt, and no other start would do better
        if desk:
            desk.close()
        raise
    except BaseException as error:
        trouble = printable(f"{type(error).__name__}: {error}")
        if isinstance(error, Exception) and world.size() > 1:
            ending.say(trouble)
        if desk:
            desk.abandon(trouble)
        raise
    bar.close()
    if desk:
        desk.close()
    return finished
