"""Worker: as cached_worker, for configs with tokens, whose answers are `TokenAnswer`."""

from __future__ import annotations

from typing import Any

from tests.parallel.cached import Answer, uncached
from tests.parallel.partial import partly
from tests.parallel.ranks import layout, report


def main(cases: dict[str, dict]) -> dict[str, dict[str, Answer]]:
    return {name: _case(**case) for name, case in cases.items()}


def _case(family: str, runs: dict[str, dict], degrees: dict | None = None) -> dict[str, Answer]:
    with layout(family, **(degrees or {})) as pipe:
        return {name: _run(pipe, family, **run) for name, run in runs.items()}


def _run(pipe: Any, family: str, config: dict | None = None, **request: Any) -> Answer:
    return uncached(pipe, family, **request) if config is None else partly(pipe, family, config, **request)


if __name__ == "__main__":
    report(main)
