"""Worker: lay xDiT out anew for each case and run each of its requests, with the cache or without.

A case is {"family", "runs", "degrees"}; a run is a request, with "config" where the cache is to be on. A list in a
request holds one item for each data-parallel replica. Where the config has tokens, the answer is a `TokenAnswer`.
"""

from __future__ import annotations

from typing import Any

from tests.parallel.cached import Answer, cached, of_replica, uncached
from tests.parallel.partial import partly
from tests.parallel.ranks import layout, report


def main(cases: dict[str, dict]) -> dict[str, dict[str, Answer]]:
    return {name: _case(**case) for name, case in cases.items()}


def _case(family: str, runs: dict[str, dict], degrees: dict | None = None) -> dict[str, Answer]:
    with layout(family, **(degrees or {})) as pipe:
        return {name: _run(pipe, family, **run) for name, run in runs.items()}


def _run(pipe: Any, family: str, config: dict | None = None, **request: Any) -> Answer:
    request = of_replica(request)
    if config is None:
        return uncached(pipe, family, **request)
    return (partly if config.get("tokens") else cached)(pipe, family, config, **request)


if __name__ == "__main__":
    report(main)
