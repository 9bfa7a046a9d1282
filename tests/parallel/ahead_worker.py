"""Worker: masked requests whose skipped steps the last stage takes alone, and the same with all stages in turn."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from fastcache_xdit import FastCacheConfig, fastcache
from fastcache_xdit.host.xdit.pipefusion import ahead
from fastcache_xdit.wrapping import PREFIX
from tests.parallel.cached import Answer, asked, uncached
from tests.parallel.ranks import layout, report


def main(cases: dict[str, dict]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, case in cases.items():
        with layout(case["family"], **case["degrees"]) as pipe:
            found[name] = _runs(pipe, case["family"], case["config"], case["requests"])
    return found


def _runs(pipe: Any, family: str, config: dict, requests: list[dict]) -> dict[str, Any]:
    uncached(pipe, family, pixels=192)  # xDiT computes positions anew after another size, and rounds otherwise
    before, attributes = uncached(pipe, family), set(vars(pipe))
    ways = {"ahead": ahead.possible(pipe), "in turn": False}
    answers: dict[str, Any] = {way: _answers(pipe, family, config, requests, on) for way, on in ways.items()}
    with fastcache(pipe, FastCacheConfig(**config)):
        added = set(vars(pipe)) - attributes
    after = uncached(pipe, family)
    untouched = before.latents is None or torch.equal(before.latents, after.latents)
    restored = untouched and set(vars(pipe)) == attributes
    of_itself = all(name.startswith(PREFIX) for name in added)  # copies do not take them along
    return {**answers, "possible": ways["ahead"], "restored": restored, "of itself": of_itself}


def _answers(pipe: Any, family: str, config: dict, requests: list[dict], on: bool) -> list[Answer]:
    with mock.patch.object(ahead, "possible", lambda _: on), fastcache(pipe, FastCacheConfig(**config)) as handle:
        found = []
        for request in requests:
            handle.reset()
            found.append(asked(handle, pipe, family, **request))
        return found


if __name__ == "__main__":
    report(main)
