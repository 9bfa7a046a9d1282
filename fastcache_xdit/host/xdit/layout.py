"""Parallel layouts, and checks of them that need no process group and no weights, so that mistakes are told at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastcache_xdit.config import FastCacheConfig
from fastcache_xdit.errors import UsageError

DEGREES = (
    "ulysses_degree",
    "ring_degree",
    "pipefusion_parallel_degree",
    "tensor_parallel_degree",
    "data_parallel_degree",
)
PARALLEL = (*DEGREES, "use_cfg_parallel")


@dataclass(frozen=True)
class Layout:
    """How xDiT divides the work among ranks; fields have the names, defaults and meaning of its own options."""

    ulysses_degree: int = 1
    ring_degree: int = 1
    pipefusion_parallel_degree: int = 1
    tensor_parallel_degree: int = 1
    data_parallel_degree: int = 1
    use_cfg_parallel: bool = False
    num_pipeline_patch: int | None = None
    warmup_steps: int = 1
    fully_shard_degree: int = 1
    vae_parallel_size: int = 0
    use_fast_attn: bool = False
    use_ray: bool = False

    @classmethod
    def of(cls, options: object) -> Layout:
        """Take the layout out of xDiT's options: an `xFuserArgs`, or what its parser gave; None is not given."""
        given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def degrees(self) -> dict[str, int]:
        """Return all parallel degrees by name, `cfg_degree` included."""
        return {**{name: getattr(self, name) for name in DEGREES}, "cfg_degree": 2 if self.use_cfg_parallel else 1}

    @property
    def ranks(self) -> int:
        """Count the ranks that the layout needs."""
        return math.prod(self.degrees.values())


def from_table(table: Any, world_size: int) -> dict[str, Any]:
    """Return the layout, as options, that a table {number of ranks: degrees} has for this many ranks.

    Raises:
        UsageError: not such a table, or nothing for this many ranks.
    """
    if not isinstance(table, dict) or not all(isinstance(layout, dict) for layout in table.values()):
        raise UsageError("layouts is a table of numbers of ranks, each with its degrees: 2: {ulysses_degree: 2}")
    if world_size not in table:
        raise UsageError(
            f"no layout for {world_size} rank{'s' * (world_size > 1)}",
            f"there are layouts for {', '.join(map(str, table))}: "
            "start one of these numbers, or give the degrees as flags",
        )
    return table[world_size]


def check_degrees(layout: Layout, world_size: int) -> None:
    """Raise UsageError unless every degree is positive and their product is the number of ranks."""
    for name, degree in layout.degrees.items():
        if degree < 1:
            raise UsageError(f"{name}={degree} is not possible", "degrees are 1 or more")
    if layout.ranks == 1 < world_size:
        raise UsageError(
            f"{world_size} ranks were started, and no parallel degree says how they divide the work",
            f"add --ulysses_degree {world_size} to share each picture, or --data_parallel_degree {world_size} for "
            "copies of the model that share the prompts",
        )
    if layout.ranks != world_size:
        used = [f"{name}={degree}" for name, degree in layout.degrees.items() if degree > 1]
        mix, needed = " x ".join(used), layout.ranks
        raise UsageError(
            f"{mix} needs {needed} rank{'s' * (needed > 1)}, "
            f"but {world_size} {'were' if world_size > 1 else 'was'} started",
            f"set torchrun --nproc_per_node {needed}, or degrees whose product is {world_size} "
            "(spare ranks can be data_parallel_degree replicas)",
        )
    _check_pipefusion(layout)


def every_layout(world_size: int) -> Iterator[Layout]:
    """Give every layout of so many ranks."""
    for branches in (1, 2):
        if world_size % branches == 0:
            for mix in _mixes(world_size // branches, DEGREES):
                yield Layout(**mix, use_cfg_parallel=branches == 2)


def _mixes(ranks: int, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give every way to write `ranks` as a product of degrees."""
    if len(names) == 1:
        yield {names[0]: ranks}
        return
    for degree in (degree for degree in range(1, ranks + 1) if ranks % degree == 0):
        for rest in _mixes(ranks // degree, names[1:]):
            yield {names[0]: degree, **rest}


def check_cache(layout: Layout, config: FastCacheConfig) -> None:
    """Raise UsageError for a layout that FastCache, with this config, does not support."""
    refused = {
        "use_fast_attn": "DiTFastAttn reuses attention outputs on its own schedule",
        "vae_parallel_size": "ranks that only decode take no cache decisions",
        "use_ray": "this command runs on torchrun; take batch run --ray, or RayDiffusionPipeline in a script",
    }
    for name, why in refused.items():
        if getattr(layout, name):
            raise UsageError(f"{name} with fastcache is not supported: {why}", f"leave {name} out")
    if layout.fully_shard_degree > 1:
        raise UsageError("fully_shard_degree > 1 with fastcache is not supported yet", "set fully_shard_degree=1")
    check_memory(config, layout.pipefusion_parallel_degree)
    check_decision(config, layout.pipefusion_parallel_degree)


def check_memory(config: FastCacheConfig, stages: int) -> None:
    """Raise UsageError where several PipeFusion stages, each with states of its own, would choose by their memory."""
    if stages > 1 and config.memory_budget:
        raise UsageError(
            "memory_budget is not supported under PipeFusion",
            "leave it away, or set granularity: output, which keeps next to nothing",
        )


def check_decision(config: FastCacheConfig, stages: int) -> None:
    """Raise UsageError where one of several PipeFusion stages would have to decide by what it does not see."""
    if stages > 1 and config.check:
        raise UsageError(
            "check is not supported under PipeFusion: the last stage alone sees what the transformer gives",
            "set check: 0",
        )
    if stages > 1 and config.pp_decision == "leader" and config.granularity in ("group", "block"):
        raise UsageError(
            f"pp_decision=leader with granularity={config.granularity} is not supported under PipeFusion: "
            "stages hold different blocks",
            "set pp_decision=stage or granularity=step",
        )


def check_warmup(warmup_steps: int) -> None:
    """Raise UsageError where xDiT's own `warmup_steps` are too few for PipeFusion stages."""
    if warmup_steps < 1:
        raise UsageError(
            f"warmup_steps={warmup_steps} is not supported under PipeFusion: the first step of a patch needs the keys "
            "and values of the others",
            "set xDiT's warmup_steps to at least 1",
        )


def _check_pipefusion(layout: Layout) -> None:
    stages, patches = layout.pipefusion_parallel_degree, layout.num_pipeline_patch
    if stages == 1:
        return
    if patches is not None and patches < stages:
        raise UsageError(f"num_pipeline_patch={patches} leaves stages idle", f"set at least {stages}, one per stage")
    check_warmup(layout.warmup_steps)
