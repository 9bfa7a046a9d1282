"""Run xDiT on a machine without accelerator: import it, start its process groups on gloo, attend, send and time on CPU.

xDiT assumes an accelerator already while it is imported. `prepare` changes the running process once, before that
import, and is meant for development, tests and small models; where an accelerator is present it does nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
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


def prepare() -> bool:
    """Make `import xfuser` and xDiT's parallel layouts work without accelerator; return whether this was needed.

    Call it before anything imports xfuser. Calling it again is free.

    Raises:
        RuntimeError: xfuser was imported before without this preparation, or triton is missing.
    """
    if has_accelerator():
        return False
    if not _state["prepared"]:
        _refuse_unready()
        _silence_cuda()
        _import_xfuser()
        _patch_attention()
        patch_pipeline_group()
        _patch_farewell()
        _patch_placement()
        _state["prepared"] = True
    return True


def attention_backend(ring_degree: int) -> str | None:
    """Return the value of xDiT's `attention_backend` that this machine needs, None where xDiT may choose.

    Ring attention merges partial results by their log-sum-exp, which xDiT's default on CPU does not return.
    """
    return "sdpa_flash" if ring_degree > 1 and not has_accelerator() else None


def _refuse_unready() -> None:
    if "xfuser" in sys.modules:
        raise UsageError(
            "xfuser was imported before fastcache_xdit.register()", "call register() first in this process"
        )
    if importlib.util.find_spec("triton") is None:
        raise UsageError("xfuser needs triton even where it is not used", "run: pip install triton")


class _Event:
    """Stands for `torch.cuda.Event`: work on CPU is done when the call returns, so the clock is enough."""

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
        del sys.modules[name]  # left behind by an import that failed for want of an accelerator
    _patch_environment()
    importlib.import_module("xfuser")
    process_group = importlib.import_module("yunchang.globals").PROCESS_GROUP
    for name in _PROCESS_GROUP_USERS:
        vars(importlib.import_module(name)).update(PROCESS_GROUP=process_group)


def _patch_environment() -> None:
    """Correct `xfuser.envs` before any other part of xfuser reads it; a bare package stands in while it is imported."""
    spec = importlib.util.find_spec("xfuser")
    if spec is None or spec.submodule_search_locations is None:
        raise UsageError("xfuser is not installed", "run: pip install xfuser")
    bare = types.ModuleType("xfuser")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["xfuser"] = bare
    try:
        envs = importlib.import_module("xfuser.envs")
    finally:
        del sys.modules["xfuser"]
    vars(envs).update(
        _is_cuda=lambda: False,  # this and the next ask how torch was built, not what is there
        _is_hip=lambda: False,
        get_device_version=lambda: None,
        get_torch_distributed_backend=lambda: "gloo",
    )
    envs.PACKAGES_CHECKER.packages_info["has_long_ctx_attn"] = True


def _attend(query, key, value, dropout_p, is_causal, attention_kwargs=None):
    """Attend on CPU and return the log-sum-exp as well: [B, H, N, d] -> [B, H, N, d], [B, H, N]."""
    mask = (attention_kwargs or {}).get("attn_mask")
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(query, key, value, dropout_p, is_causal, attn_mask=mask)


def _patch_attention() -> None:
    backends = importlib.import_module("xfuser.core.distributed.attention_backend")
    for name in ("SDPA_FLASH", "CUDNN"):  # the second is xDiT's choice on a CUDA build of torch
        backends.ATTENTION_FUNCTION_REGISTRY[backends.AttentionBackendType[name]] = _attend


def _patch_farewell() -> None:
    """Let no rank close its connections while others still read: what gloo has sent is with the sender until then."""
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
        """xDiT's Ray workers move pipelines to a CUDA device, whatever there is."""
        return self if str(device).startswith("cuda") else original(self, device, *args, **kwargs)

    wrapper.to = to


def _leave_in_place(loader: Any) -> None:
    """Keep a pipeline where it was loaded; xDiT's runner would move it to a CUDA device, converting it on the way.

    Raises:
        UsageError: the run asks for a conversion, which needs a device.
    """
    asked = [name for name in _CONVERSIONS if getattr(loader.model.config, name, False)]
    if loader.model.config.fully_shard_degree > 1:
        asked.append("fully_shard_degree")
    if asked:
        raise UsageError(f"{', '.join(asked)} cannot be used without accelerator", "leave it out to run on CPU")
