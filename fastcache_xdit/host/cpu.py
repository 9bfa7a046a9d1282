"""Runs xDiT on a machine without accelerator: its import, process groups, attention, messages and timing.

xDiT assumes an accelerator as early as its import. `prepare` changes the running process once, before that import. It
is meant for development, tests and small models, and does nothing if there is an accelerator.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import time
import types
from typing import Any

import torch
import torch.distributed

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.gloo_pipeline import patch_pipeline_group

_PROCESS_GROUP_USERS = (
    "xfuser.model_executor.layers.usp",
    "xfuser.model_executor.layers.usp_legacy",
    "xfuser.core.distributed.fp8_comms",
    "xfuser.core.sparge_attention.head_balance",
)

_CONVERSIONS = ("use_fp8_gemms", "use_fp4_gemms", "use_fp6_gemms", "use_int8_gemms", "use_fp8_text_encoder")

_state = {"prepared": False}


def has_accelerator() -> bool:
    """Return whether torch can use any accelerator here (CUDA, ROCm, MPS, XPU, NPU, ...)."""
    return torch.cuda.is_available() or torch.accelerator.is_available()


def memory() -> int:
    """Return the bytes of memory of this process's device."""
    if has_accelerator():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def prepare() -> bool:
    """Make `import xfuser` and xDiT's parallel layouts work without accelerator; return whether that was needed.

    Call this before anything imports xfuser; a second call does nothing.

    Raises:
        UsageError: xfuser was imported before, or is not installed, or triton is missing.
    """
    if has_accelerator():
        return False
    if not _state["prepared"]:
        _refuse_unready()
        _silence_cuda()
        _import_xfuser()
        _patch_attention()
        patch_pipeline_group()
        _patch_exit()
        _patch_placement()
        _state["prepared"] = True
    return True


def attention_backend(ring_degree: int) -> str | None:
    """Return the value that xDiT's `attention_backend` needs on this machine; None if xDiT may choose.

    Ring attention merges partial results by their log-sum-exp, which xDiT's default on a CPU does not return.
    """
    return "sdpa_flash" if ring_degree > 1 and not has_accelerator() else None


def check_conversions(options: Any) -> None:
    """Raise UsageError where xDiT's options ask for weights in a form that only an accelerator has."""
    if has_accelerator():
        return
    requested = [name for name in _CONVERSIONS if getattr(options, name, False)]
    if options.fully_shard_degree > 1:
        requested.append("fully_shard_degree")
    if requested:
        raise UsageError(f"{', '.join(requested)} cannot be used without accelerator", "leave it out to run on CPU")


def _refuse_unready() -> None:
    if "xfuser" in sys.modules:
        raise UsageError(
            "xfuser was imported before fastcache_xdit.register()", "call register() first in this process"
        )
    if importlib.util.find_spec("triton") is None:
        raise UsageError("xfuser needs triton even where it is not used", "run: pip install triton")


class _Event:
    """A replacement of `torch.cuda.Event`; CPU work is done when its call returns, so the clock is enough."""

    def __init__(self, *_: Any, **__: Any):
        self.seconds = 0.0

    def record(self, *_: Any) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return (end.seconds - self.seconds) * 1000.0


def _silence_cuda() -> None:
    vars(torch.cuda).update(synchronize=lambda *_, **__: None, Event=_Event)


def _import_xfuser() -> None:
    for name in [name for name in sys.modules if name.startswith("xfuser.")]:
        del sys.modules[name]  # left behind by an import that failed without an accelerator
    _patch_environment()
    importlib.import_module("xfuser")
    process_group = importlib.import_module("yunchang.globals").PROCESS_GROUP
    for name in _PROCESS_GROUP_USERS:
        vars(importlib.import_module(name)).update(PROCESS_GROUP=process_group)


def _patch_environment() -> None:
    """Correct `xfuser.envs` before any other part of xfuser reads it, by importing it below an empty package."""
    spec = importlib.util.find_spec("xfuser")
    if spec is None or spec.submodule_search_locations is None:
        raise UsageError("xfuser is not installed", "run: pip install xfuser")
    empty = types.ModuleType("xfuser")
    empty.__path__ = list(spec.submodule_search_locations)
    sys.modules["xfuser"] = empty
    try:
        envs = importlib.import_module("xfuser.envs")
    finally:
        del sys.modules["xfuser"]
    vars(envs).update(
        _is_cuda=lambda: False,  # xDiT asks here how torch was built, not what hardware there is
        _is_hip=lambda: False,
        get_device_version=lambda: None,
        get_torch_distributed_backend=lambda: "gloo",
    )
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True
    vars(envs.PACKAGES_CHECKER).update(_on_rdna4=lambda: False, _on_mi3xx=lambda: False)  # which ask the first GPU


def _attend(query, key, value, dropout_p, is_causal, attention_kwargs=None):
    """Compute attention on the CPU with its log-sum-exp, [B, H, N, d] -> [B, H, N, d], [B, H, N]."""
    if not key.shape[2]:  # torch's kernel divides by the number of keys
        return torch.zeros_like(query), query.new_full(query.shape[:3], -torch.inf)
    mask = (attention_kwargs or {}).get("attn_mask")
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=mask)


def _with_grouped_heads(attend):
    """Let attention take fewer heads of keys than of queries, as flash attention does."""

    @functools.wraps(attend)
    def repeated(query, key, value, *args, **kwargs):
        if times := query.shape[1] // key.shape[1] - 1:
            key, value = (part.repeat_interleave(times + 1, dim=1) for part in (key, value))
        return attend(query, key, value, *args, **kwargs)

    return repeated


def _patch_attention() -> None:
    backends = importlib.import_module("xfuser.core.distributed.attention_backend")
    functions, kinds = backends.ATTENTION_FUNCTION_REGISTRY, backends.AttentionBackendType
    functions[kinds.SDPA_FLASH] = functions[kinds.CUDNN] = _attend  # xDiT chooses the latter on a CUDA build of torch
    for kind in (kinds.SDPA, kinds.SDPA_FLASH, kinds.CUDNN):
        functions[kind] = _with_grouped_heads(functions[kind])


def _patch_exit() -> None:
    """Make ranks wait for each other at exit: gloo keeps sent data with the sender until it is read."""
    state = importlib.import_module("xfuser.core.distributed.runtime_state").RuntimeState
    original = state.destroy_distributed_env

    def destroy(self) -> None:
        torch.distributed.barrier()
        original(self)

    state.destroy_distributed_env = destroy


def _patch_placement() -> None:
    loading = importlib.import_module("xfuser.model_executor.models.runner_models.loading.meta_load")
    loading.ModelLoader.materialize_pipeline = _leave_in_place
    wrapper = importlib.import_module("xfuser.model_executor.pipelines.base_pipeline").xFuserPipelineBaseWrapper
    original = wrapper.to

    def to(self, device: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Ignore a move to CUDA, which xDiT's Ray workers request on every machine."""
        return self if str(device).startswith("cuda") else original(self, device, *args, **kwargs)

    wrapper.to = to


def _leave_in_place(loader: Any) -> None:
    """Keep a pipeline on the CPU; xDiT's runner would convert it and move it to a CUDA device.

    Raises:
        UsageError: as `check_conversions`.
    """
    check_conversions(loader.model.config)
