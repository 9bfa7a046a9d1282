"""Run a job on a Ray cluster: start the replicas, replace those that die, and watch until the job is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastcache_xdit.errors import ReplicaError
from fastcache_xdit.host.xdit.layout import Layout
from fastcache_xdit.host.xdit.loading import XditOptions
from fastcache_xdit.jobs.cluster import ReplicaActors, check_room, connect
from fastcache_xdit.jobs.progress import Bar, settled
from fastcache_xdit.jobs.queue import queue_beside, ray_module
from fastcache_xdit.jobs.recipe import Recipe, printable
from fastcache_xdit.jobs.restart import MOST_IN_VAIN
from fastcache_xdit.jobs.run import closing_line, exit_code
from fastcache_xdit.jobs.stop import Stop
from fastcache_xdit.jobs.store import Store

GLANCE = 0.5  # seconds between two looks at the bar and at signals


def run_on_ray(folder: Path, xdit: XditOptions, max_attempts: int, address: str | None, replicas: int) -> int:
    """Work on the job in `folder` with `replicas` on a cluster, and return the exit code.

    Without `address` a cluster is started on this machine.

    Raises:
        UsageError: no Ray, no such cluster, or one that is too small.
        ReplicaError: replicas die one after the other before they make an image.
    """
    store, size = Store(folder), Layout.of(xdit).ranks
    finished = store.is_over()
    if not finished:
        connect(address)
        check_room(replicas, size)
        fleet = _Fleet(store, xdit, size, queue_beside(folder, max_attempts))
        try:
            finished = fleet.work(replicas)
        finally:
            ray_module().shutdown()
    print(f"fastcache: {closing_line(store, folder, finished)}", flush=True)
    return exit_code(store)


class _Fleet:
    """The replicas that are at work; `size` ranks each."""

    def __init__(self, store: Store, xdit: XditOptions, size: int, queue: Any) -> None:
        self._store = store
        self._xdit = xdit
        self._size = size
        self._queue = queue
        self._replicas: dict[Any, ReplicaActors] = {}  # by the result that a rank will have
        self._started = 0
        self._losses = 0
        self._settled_at_loss = -1

    def work(self, replicas: int) -> bool:
        """Work until every replica has ended; return False where they were asked to stop."""
        bar = Bar(self._store, shown=True)
        with Stop() as stop:  # Ray has set handlers of its own
            for _ in range(replicas):
                self._start()
            while self._replicas:
                self._look(stop)
                bar.show()
        bar.close()
        return not stop.asked

    def _start(self) -> None:
        recipe: Recipe = self._store.recipe
        actors = ReplicaActors(self._started, self._size, recipe, self._xdit, self._queue)
        self._replicas.update(dict.fromkeys(actors.results, actors))
        self._started += 1

    def _look(self, stop: Stop) -> None:
        if stop.asked:
            self._queue.stop.remote()
        ready, _ = ray_module().wait(list(self._replicas), timeout=GLANCE)
        for result in ready:
            if result in self._replicas:
                self._end_of(result, stop)

    def _end_of(self, result: Any, stop: Stop) -> None:
        """Take note that one rank has ended: in order, or with its whole replica, which another one replaces.

        Raises:
            UsageError: the user's mistake that it met; no other replica would do better.
        """
        actors = self._replicas.pop(result)
        try:
            if mistake := ray_module().get(result):
                raise mistake
        except ray_module().exceptions.RayError as error:
            self._lose(actors, error)
            if not stop.asked:
                self._start()
        if actors not in self._replicas.values():
            actors.end()

    def _lose(self, actors: ReplicaActors, error: Exception) -> None:
        self._replicas = {result: other for result, other in self._replicas.items() if other is not actors}
        ray_module().get(self._queue.lose.remote(actors.number, printable(str(error))))
        now = settled(self._store.counts())
        self._losses = self._losses + 1 if now == self._settled_at_loss else 1
        self._settled_at_loss = now
        if self._losses >= MOST_IN_VAIN:
            raise ReplicaError(
                f"{self._losses} replicas in a row died without an image; the last one: {error}"
            ) from error
