"""Run xDiT on a machine without accelerator: import it, start its process groups on gloo, attend, send and time on CPU.

xDiT assumes an accelerator already while it is imported. `prepare` changes the running process once, before that
import, and is meant for development, tests and small models; where an accelerator is present it does nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import time
import types
from collections import deque
from typing import Any

import torch
import torch.distributed

_PROCESS_GROUP_USERS = (
    "xfuser.model_executor.layers.usp",
    "xfuser.model_executor.layers.usp_legacy",
    "xfuser.core.distributed.fp8_comms",
    "xfuser.core.sparge_attention.head_balance",
)
_SHAPE_TAG = 1  # shapes travel apart from the tensors, so that neither can be taken for the other
_SHAPE_SLOTS = 8
_SENDS_KEPT = 64  # far more than a pipeline can lag behind: one message per patch and stream

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
        _patch_pipeline_group()
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
        raise RuntimeError(
            "xfuser was imported before fastcache_xdit.host.cpu.prepare(); call prepare() first in this process"
        )
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("xfuser needs triton even where it is not used; run: pip install triton")


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
    torch.cuda.synchronize = lambda *_, **__: None
    torch.cuda.Event = _Event


def _import_xfuser() -> None:
    for name in [name for name in sys.modules if name.startswith("xfuser.")]:
        del sys.modules[name]  # left behind by an import that failed for want of an accelerator
    _patch_environment()
    importlib.import_module("xfuser")
    process_group = importlib.import_module("yunchang.globals").PROCESS_GROUP
    for name in _PROCESS_GROUP_USERS:
        importlib.import_module(name).PROCESS_GROUP = process_group


def _patch_environment() -> None:
    """Correct `xfuser.envs` before any other part of xfuser reads it; a bare package stands in while it is imported."""
    spec = importlib.util.find_spec("xfuser")
    if spec is None or spec.submodule_search_locations is None:
        raise RuntimeError("xfuser is not installed; run: pip install xfuser")
    bare = types.ModuleType("xfuser")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["xfuser"] = bare
    try:
        envs = importlib.import_module("xfuser.envs")
    finally:
        del sys.modules["xfuser"]
    envs._is_cuda = envs._is_hip = lambda: False  # they ask how torch was built, not what is there
    envs.get_device_version = lambda: None
    envs.get_torch_distributed_backend = lambda: "gloo"
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


def _patch_pipeline_group() -> None:
    group = importlib.import_module("xfuser.core.distributed.group_coordinator").PipelineGroupCoordinator
    group._communicate_shapes = _exchange_shapes
    group._pipeline_isend = _send
    group._pipeline_isend_skip = _send_skip


def _exchange_shapes(group, tensor_send_to_next=None, recv_prev=False) -> torch.Size:
    """Tell the next stage a shape without waiting for it: two stages that both wait for a send never meet."""
    if tensor_send_to_next is not None:
        shape = list(tensor_send_to_next.shape)
        message = torch.tensor([len(shape), *shape] + [0] * (_SHAPE_SLOTS - 1 - len(shape)))
        _keep(group, message, group.next_rank, group.device_group, _SHAPE_TAG)
    if not recv_prev:
        return torch.Size([0, 0, 0])
    message = torch.empty(_SHAPE_SLOTS, dtype=torch.int64)
    torch.distributed.recv(message, src=group.prev_rank, group=group.device_group, tag=_SHAPE_TAG)
    length, *shape = message.tolist()
    return torch.Size(shape[:length])


def _send(group, tensor: torch.Tensor):
    lane = group.device_groups[group.rank_in_group % 2] if group.world_size == 2 else group.device_group
    return _keep(group, tensor.clone(), group.next_rank, lane)


def _send_skip(group, tensor: torch.Tensor):
    return _keep(group, tensor.clone(), group.skip_rank, group.skip_device_group)


def _keep(group, tensor: torch.Tensor, target: int, lane, tag: int = 0):
    """Send without waiting, and hold on to the tensor and the handle: gloo drops a send that nobody remembers."""
    work = torch.distributed.isend(tensor, dst=target, group=lane, tag=tag)
    sends = group.__dict__.setdefault("_sends", deque())
    sends.append((work, tensor))
    while len(sends) > _SENDS_KEPT:
        sends.popleft()[0].wait()
    return work


def _patch_placement() -> None:
    """Leave a pipeline where it was loaded; xDiT's runner would move it to a CUDA device."""
    with contextlib.suppress(ModuleNotFoundError):
        loading = importlib.import_module("xfuser.model_executor.models.runner_models.loading.meta_load")
        loading.ModelLoader.materialize_pipeline = lambda loader: None
