"""Measure where the time of a step goes: to the host, to kernels, to messages between ranks."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function

from fastcache_xdit.bench.peers.full_size import FullSize
from fastcache_xdit.bench.timed import Timed
from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.host.base import Host
from fastcache_xdit.host.group import GroupConsensus
from fastcache_xdit.host.xdit import world
from fastcache_xdit.models.architectures import ARCHITECTURES
from fastcache_xdit.tuning.calls import PipelineCall
from fastcache_xdit.tuning.runner import Runner
from fastcache_xdit.undo import Undo

STEP, MESSAGE = "fastcache: step", "fastcache: message"  # labels in the profile
UNCACHED, EMPTY = "uncached", "without blocks"
PLAIN = {
    "computed": UNCACHED,
    "tested": UNCACHED,
    "skipped": EMPTY,
}  # what each step would be if the cache cost nothing
ROUNDS = 5  # requests of each kind, in turns, so that what else the machine does meets all of them
_HOST = torch.autograd.DeviceType.CPU  # the device shows a label once more
_NARROW: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}


class StepTime(NamedTuple):
    """Milliseconds of one call of the transformer, in the later half of a request.

    Attributes:
        whole: wall time, the device's work included, the median of `ROUNDS` requests; the others are the least of a
            profiled request, which is slower.
        host: Python and what it calls, without kernels that the host computes itself.
        kernels: computing, on the device that does.
        messages: agreeing with other ranks, waiting for them included.
    """

    whole: float
    host: float
    kernels: float
    messages: float


COLUMNS = (*StepTime._fields, "own")


def profile(runner: Runner, call: PipelineCall) -> dict[str, dict[str, float]]:
    """Profile a step without the cache, with no blocks at all, computed, computed after a test, and skipped.

    Returns:
        By kind of step, its `StepTime` in ms, of several ranks the largest. `own` is by how much a step with the cache
        takes longer than the model's own part of it.
    """
    kinds = (UNCACHED, EMPTY, *PLAIN)
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for kind in kinds * ROUNDS:
        with _requests(runner, kind, call.steps) as generate:
            seconds[kind] += _seconds(runner, call, generate)
    rows = {}
    for kind in kinds:
        with _requests(runner, kind, call.steps) as generate:
            times = [1000 * statistics.median(seconds[kind]), *_profiled(runner, call, generate)]
        ranks = world.all_gather_objects(times)
        rows[kind] = StepTime(*(max(of_ranks) for of_ranks in zip(*ranks, strict=True)))._asdict()
    for kind, plain in PLAIN.items():
        rows[kind]["own"] = rows[kind]["whole"] - rows[plain]["whole"]
    return rows


@contextlib.contextmanager
def _requests(runner: Runner, kind: str, steps: int) -> Iterator[Callable[[PipelineCall], Any]]:
    """Yield what makes requests whose later half consists of one kind of steps."""
    configs = {
        "computed": FastCacheConfig.scheduled("1" * steps, lead_blocks=0),
        "tested": FastCacheConfig(test="paper", error_budget=0),
        "skipped": FastCacheConfig.scheduled("1" + "0" * (steps - 1), lead_blocks=0),
    }
    if kind in configs:
        with runner.enabled(configs[kind]) as generate:
            yield generate
    else:
        with _without_blocks(runner.host) if kind == EMPTY else contextlib.nullcontext():
            yield runner.uncached


def deep_flux(steps: int) -> tuple[Runner, PipelineCall]:
    """Return FLUX.1 with its 57 blocks at a tiny width and size, in which hardly anything but the host takes time."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = FullSize(ARCHITECTURES["flux.1-dev"], "float32", device, **_NARROW)
    text = {"prompt_embeds": torch.zeros(1, 16, 4096), "pooled_prompt_embeds": torch.zeros(1, 768)}
    given = {name: values.to(device) for name, values in text.items()}
    return Runner(model.pipe), PipelineCall({**given, "height": 64, "width": 64, "num_inference_steps": steps}, 0)


def _seconds(runner: Runner, call: PipelineCall, generate: Callable[[PipelineCall], Any]) -> list[float]:
    with Undo() as undo:
        timed = Timed(undo, [runner.host.transformer], "__call__")
        generate(call)
    return _later(timed.seconds)


def _profiled(runner: Runner, call: PipelineCall, generate: Callable[[PipelineCall], Any]) -> list[float]:
    """Return milliseconds of host, kernels and messages."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with Undo() as undo:
        undo.wrap(runner.host.transformer, "__call__", _labelled(STEP))
        agree, label = GroupConsensus.agree, _labelled(MESSAGE)
        undo.set(GroupConsensus, "agree", lambda *args, **kwargs: label(agree, *args, **kwargs))
        with torch.profiler.profile(activities=activities) as shown:
            generate(call)
    parts = [_parts(event) for event in shown.events() or [] if event.name == STEP and event.device_type == _HOST]
    return [min(_later(column)) for column in zip(*parts, strict=True)]


def _later(times: Sequence[float]) -> list[float]:
    return list(times[len(times) // 2 :])


def _labelled(label: str) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with record_function(label):
            return original(*args, **kwargs)

    return around


def _parts(step: FunctionEvent) -> tuple[float, float, float]:
    """Return milliseconds of host, kernels and messages of one profiled call."""
    inside = list(_inside(step))
    messages = sum(event.cpu_time_total for event in inside if event.name == MESSAGE)
    computed = sum(event.self_cpu_time_total for event in inside if event.name.startswith("aten::"))
    on_device = step.device_time_total
    host = step.cpu_time_total - messages - (0.0 if on_device else computed)
    return host / 1000, (on_device or computed) / 1000, messages / 1000


def _inside(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """Yield all events inside of one; those inside of messages belong to them."""
    for child in event.cpu_children:
        yield child
        if child.name != MESSAGE:
            yield from _inside(child)


@contextlib.contextmanager
def _without_blocks(host: Host) -> Iterator[None]:
    """Let a model run without its blocks inside the with block."""
    with Undo() as undo:
        for name in host.spec.blocks:
            undo.set(host.model, name, nn.ModuleList())
        yield
