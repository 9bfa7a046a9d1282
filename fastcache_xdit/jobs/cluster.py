"""The actors of a job on a Ray cluster: replicas on any machine, and how they start."""

from __future__ import annotations

import os
import secrets
import socket
from typing import Any

import torch.distributed

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import loading
from fastcache_xdit.host.xdit.loading import XditOptions
from fastcache_xdit.host.xdit.replica import join
from fastcache_xdit.host.xdit.watch import Watch
from fastcache_xdit.jobs.queue import RemoteDesk, ray_module
from fastcache_xdit.jobs.recipe import Recipe, printable
from fastcache_xdit.jobs.replica import Replica
from fastcache_xdit.jobs.worker import work
from fastcache_xdit.plugin import register

STARTS = 3  # a busy machine can take longer than the 30 s that Ray allows for a start
ANSWER = 10.0  # seconds in which a cluster's head must answer


class Rank:
    """Actor: one rank of a replica, with the plugin registered in its process."""

    def __init__(self) -> None:
        loading.prepare()
        register()

    def address(self) -> tuple[str, int]:
        """Open a store on this machine where the ranks of this replica meet; its port stays taken from now on."""
        host = ray_module().util.get_node_ip_address()
        self._meeting = torch.distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        return host, self._meeting.port

    def run(
        self, rank: int, size: int, address: tuple[str, int], recipe: Recipe, xdit: XditOptions, desk: RemoteDesk
    ) -> UsageError | None:
        """Load the model and work until nothing is left; return the mistake of the user that stops it, if any."""
        place = {
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": 0,
            "MASTER_ADDR": address[0],
            "MASTER_PORT": address[1],
            "TORCHELASTIC_USE_AGENT_STORE": True,  # the store is there, also for rank 0
        }
        os.environ.update({name: str(value) for name, value in place.items()})
        join(replicas=1)
        own = desk if rank == 0 else None

        def end(reason: str) -> None:
            if own:
                own.abandon(reason)
            os._exit(1)  # the main thread may be stuck for ever; another replica is started

        watch = Watch(recipe.lease, own.beat if own else lambda: None, end)
        try:
            replica = Replica(recipe, xdit)
            with watch.following(replica.pipe):
                work(replica, own, lambda: False, lambda: None, watch.mark)
        except UsageError as mistake:  # a value, because Ray wraps what is raised
            return mistake
        return None


class ReplicaActors:
    """The actors of one replica, in a placement group of their own; their ranks are at work at once."""

    def __init__(self, number: int, size: int, recipe: Recipe, xdit: XditOptions, queue: Any) -> None:
        ray = ray_module()
        resources = {"CPU": 1.0, _device_kind(): 1.0}
        self.number = number
        self._place = ray.util.placement_group([resources] * size, strategy="PACK")
        kind = ray.remote(Rank).options(
            num_cpus=1, num_gpus=resources.get("GPU", 0), placement_group=self._place, max_restarts=0
        )
        self._actors = [kind.remote() for _ in range(size)]
        address, desk = self._actors[0].address.remote(), RemoteDesk(queue, number)
        self.results = [
            actor.run.remote(rank, size, address, recipe, xdit, desk) for rank, actor in enumerate(self._actors)
        ]

    def end(self) -> None:
        """Kill what is left of the actors and free their place."""
        for actor in self._actors:
            ray_module().kill(actor)
        ray_module().util.remove_placement_group(self._place)


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start one on this machine, for this user's processes alone.

    Raises:
        UsageError: there is none, or no Ray.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    settings: dict[str, Any] = {"include_dashboard": False, "logging_level": "error", "log_to_driver": False}
    if address and ":" in address:
        _check_address(address)
    if not address:
        _keep_to_this_user()
    for left in reversed(range(STARTS)):
        try:
            ray_module().init(address=address, **settings)
            return
        except ConnectionError as error:
            raise UsageError(f"no Ray cluster at {address}: {printable(str(error))}") from None
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise


def _keep_to_this_user() -> None:
    """Have a cluster that is started here ask for a token: it listens on all interfaces, whatever it is told."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _check_address(address: str) -> None:
    """Raise UsageError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER).close()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster at {address} ({error})",
            "give HOST:PORT of its head, as ray start printed it, or auto on a machine of the cluster",
        ) from None


def check_room(replicas: int, size: int) -> None:
    """Raise UsageError where the cluster cannot hold `replicas` of `size` ranks, one GPU each where it has any."""
    kind = _device_kind()
    if (there := int(ray_module().cluster_resources().get(kind, 0))) < replicas * size:
        raise UsageError(
            f"{replicas} replicas of {size} ranks need {replicas * size} {kind}s, the cluster has {there}",
            f"set --replicas {max(1, there // size)}, smaller degrees, or add machines",
        )


def _device_kind() -> str:
    """Name what each rank needs one of: a GPU where the cluster has any, else a CPU."""
    return "GPU" if ray_module().cluster_resources().get("GPU") else "CPU"
