"""Worker: run named cases one after the other, each in an xDiT layout of its own, with or without our fixes.

A case is {"family", "layout", "request", "fixes", "ask"}, all but the first optional; its result is what the question
`ask` returns, or the exception as text under the case's name with "!" behind it.
"""

from __future__ import annotations

import time
from typing import Any

from fastcache_xdit.host import cpu
from fastcache_xdit.undo import Undo
from tests.parallel.ranks import generate, layout, report, xdit
from tests.parallel.runner import image


def main(cases: dict[str, dict]) -> dict[str, Any]:
    results: dict[str, Any] = {"prepared": [cpu.prepare(), cpu.prepare()]}
    for name, case in cases.items():
        try:
            results[name] = _run(**case)
        except (RuntimeError, ValueError, AttributeError) as error:
            results[name + "!"] = f"{type(error).__name__}: {error}"
    return results


def _run(family: str, ask: str = "latents", layout: dict | None = None, request: dict | None = None, fixes=False):
    if ask == "image":
        return image(family, **(request or {}))
    if ask == "late":
        return _last_rank_late(family, layout or {})
    return _in_layout(family, QUESTIONS[ask], layout or {}, request or {}, fixes)


def _last_rank_late(family: str, degrees: dict) -> Any:
    """Slow the last stage down and let each rank close its connections as soon as it is done; no case can follow."""
    from xfuser.core.distributed import is_pipeline_last_stage

    pipe = xdit(family, **degrees)
    if is_pipeline_last_stage():
        pipe.transformer.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    latents = generate(pipe, family)
    _runtime_state().destroy_distributed_env()
    return latents


def _in_layout(family: str, question, degrees: dict, request: dict, fixes: bool):
    from fastcache_xdit.host.xdit.fixes import apply_fixes

    with layout(family, **degrees) as pipe, Undo() as undo:
        names = apply_fixes(undo) if fixes else []
        return question(pipe, family, request) if question else names


def _latents(pipe, family: str, request: dict):
    return generate(pipe, family, **request)


def _patches(pipe, family: str, request: dict):
    """Return the height of this rank's share of each patch, without running anything."""
    state = _runtime_state()
    state.set_input_parameters(height=request["pixels"], width=request["pixels"], batch_size=1, num_inference_steps=1)
    return state.pp_patches_height


def _warmup(pipe, family: str, request: dict):
    """Run a short request, then a long one; return the long one's latents and the warm-up steps that it ran with."""
    generate(pipe, family, steps=request["short"])
    latents = generate(pipe, family, steps=request["long"])
    return {"latents": latents, "warmup": _runtime_state().runtime_config.warmup_steps}


def _leftovers(pipe, family: str, request: dict):
    """Return which patched names differ from before after the fixes were applied and taken back."""
    from fastcache_xdit.host.xdit.fixes import apply_fixes

    before = _patched_names()
    with Undo() as undo:
        apply_fixes(undo)
        changed = _differing(before)
    return {"changed": changed, "left": _differing(before)}


def _differing(before: dict[str, Any]) -> list[str]:
    now = _patched_names()
    return [name for name in before.keys() | now.keys() if before.get(name) is not now.get(name)]


def _patched_names() -> dict[str, Any]:
    from xfuser.core.cache_manager.cache_manager import CacheManager
    from xfuser.core.distributed import get_sp_group
    from xfuser.core.distributed.runtime_state import DiTRuntimeState
    from xfuser.model_executor.layers import usp
    from xfuser.model_executor.models.transformers import transformer_flux as flux
    from yunchang.globals import PROCESS_GROUP

    owners = {"usp": usp, "manager": CacheManager, "state": DiTRuntimeState, "flux": flux}
    owners |= {"whole": flux.xFuserFlux1Transformer2DWrapper, "local": flux.xFuserFluxTransformer2DWrapper}
    owners |= {"groups": PROCESS_GROUP, "sequence": get_sp_group()}
    return {f"{name}.{key}": value for name, owner in owners.items() for key, value in vars(owner).items()}


def _runtime_state():
    from xfuser.core.distributed import get_runtime_state

    return get_runtime_state()


QUESTIONS = {"latents": _latents, "patches": _patches, "warmup": _warmup, "leftovers": _leftovers, "applied": None}

if __name__ == "__main__":
    report(main)
