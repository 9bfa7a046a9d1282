"""One queue beside the store, an actor that serves the replicas of a job on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.errors import UsageError
from fastcache_xdit.home import Home
from fastcache_xdit.jobs.desk import Learnt, StoreDesk, Work
from fastcache_xdit.jobs.item import Figures, ItemOutcome
from fastcache_xdit.jobs.store import Store


class Queue:
    """Actor beside the store, with one desk for each replica, which is abandoned once the replica is lost."""

    def __init__(self, folder: str, max_attempts: int, home: Home) -> None:
        self._store = Store(folder)
        self._home = home
        self._max_attempts = max_attempts
        self._desks: dict[int, StoreDesk] = {}
        self._lost: set[int] = set()
        self._stopped = False

    def ask(self, replica: int, question: str, *values: Any) -> Any:
        """Return what a replica's desk answers, a method of `Desk`; None where the replica should end."""
        if self._stopped or replica in self._lost:
            return None
        if replica not in self._desks:
            self._desks[replica] = StoreDesk(self._store, self._max_attempts, self._home)
        return getattr(self._desks[replica], question)(*values)

    def keep(self, replica: int, calibration: Calibration) -> None:
        """Keep what a replica has learnt; ignore a lost one, in whose place another learns already."""
        if replica not in self._lost:
            self._desks[replica].keep(calibration)

    def deliver(self, replica: int, outcomes: Sequence[ItemOutcome], figures: Figures) -> None:
        """Keep what a replica made; ignore a lost one, whose items another makes already."""
        if replica not in self._lost:
            self._desks[replica].deliver(outcomes, figures)

    def lose(self, replica: int, trouble: str) -> None:
        """Give the items of a dead replica to others."""
        self._lost.add(replica)
        if desk := self._desks.pop(replica, None):
            desk.abandon(trouble)

    def stop(self) -> None:
        """Hand out nothing more."""
        self._stopped = True


class RemoteDesk:
    """A `Desk` at the queue, for the first rank of a replica."""

    def __init__(self, queue: Any, replica: int) -> None:
        self._queue = queue
        self._replica = replica

    def learnt(self, identity: Mapping[str, Any]) -> Learnt | None:
        """Ask the queue what is known of the model."""
        return self._ask("learnt", identity)

    def next_to_record(self, after: int) -> Work | None:
        """Take the next batch that is learnt from."""
        return self._ask("next_to_record", after)

    def keep(self, calibration: Calibration) -> None:
        """Hand what was learnt to the queue."""
        ray_module().get(self._queue.keep.remote(self._replica, calibration))

    def next(self) -> Work | None:
        """Take the next batch from the queue."""
        return self._ask("next")

    def deliver(self, outcomes: Sequence[ItemOutcome], figures: Figures) -> None:
        """Hand what became of a batch to the queue."""
        ray_module().get(self._queue.deliver.remote(self._replica, outcomes, figures))

    def beat(self) -> None:
        """Tell the queue that this replica gets on."""
        self._queue.ask.remote(self._replica, "beat")

    def abandon(self, trouble: str) -> None:
        """Tell the queue what this replica dies of."""
        ray_module().get(self._queue.lose.remote(self._replica, trouble))

    def _ask(self, question: str, *values: Any) -> Any:
        return ray_module().get(self._queue.ask.remote(self._replica, question, *values))


def queue_beside(folder: Path, max_attempts: int) -> Any:
    """Start the queue actor, on this machine, which holds the job."""
    ray = ray_module()
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    actor = ray.remote(Queue).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(str(folder.resolve()), max_attempts, Home())


def ray_module() -> Any:
    """Import Ray where it is used, because most jobs run without. Raises UsageError where it is not installed."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'fastcache_xdit[ray]'") from None
    return ray
