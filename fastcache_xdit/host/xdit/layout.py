"""Checks of a parallel layout that need no process group and no weights, so that mistakes are told at once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
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
VIDEO, OF_VIDEO = "WanTransformer3DModel", ("ulysses_degree", "ring_degree", "data_parallel_degree")
PACKED = ("FluxTransformer2DModel", "Flux2Transformer2DModel")  # their pipelines make one token of 2 x 2 latents


def degrees(options: Mapping[str, Any]) -> dict[str, int]:
    """All parallel degrees of a command line, `cfg_degree` included."""
    found = {name: options.get(name) or 1 for name in DEGREES}
    return {**found, "cfg_degree": 2 if options.get("use_cfg_parallel") else 1}


def from_table(table: Any, world_size: int) -> dict[str, Any]:
    """The layout that a table {number of ranks: degrees} has for this many ranks; none fits without a table.

    Raises:
        UsageError: not such a table, or nothing for this many ranks.
    """
    if not isinstance(table, dict) or not all(isinstance(layout, dict) for layout in table.values()):
        raise UsageError("layouts is a table of numbers of ranks, each with its degrees: 2: {ulysses_degree: 2}")
    if world_size not in table:
        raise UsageError(
            f"no layout for {world_size} rank{'s' * (world_size > 1)}",
            f"there are layouts for "
            f"{', '.join(map(str, table))}: start one of these numbers, or give the degrees as flags",
        )
    return table[world_size]


def check_degrees(options: Mapping[str, Any], world_size: int) -> None:
    """Raise UsageError unless every degree is positive and their product is the number of ranks."""
    wanted = degrees(options)
    for name, degree in wanted.items():
        if degree < 1:
            raise UsageError(f"{name}={degree} is not possible", "degrees are 1 or more")
    used = {name: degree for name, degree in wanted.items() if degree > 1}
    product = math.prod(used.values())
    if product != world_size:
        mix = " x ".join(f"{name}={degree}" for name, degree in used.items()) or "no parallel degree"
        raise UsageError(
            f"{mix} needs {product} rank{'s' * (product > 1)}, but {world_size} {'were' if world_size > 1 else 'was'} "
            f"started",
            f"set torchrun --nproc_per_node {product}, or degrees whose product is {world_size} "
            "(spare ranks can be data_parallel_degree replicas)",
        )
    _check_pipefusion(options, wanted["pipefusion_parallel_degree"])


def possible(world_size: int, folder: Path | None) -> list[dict[str, int]]:
    """The degrees of every layout of this many ranks, of those in which a checkpoint on disk can run."""
    mixes = [
        {**mix, "use_cfg_parallel": branches == 2}
        for branches in (1, 2)
        if world_size % branches == 0
        for mix in _mixes(world_size // branches, DEGREES)
    ]
    return [degrees(mix) for mix in mixes if _allowed(mix, world_size, folder)]


def _mixes(ranks: int, names: Sequence[str]) -> Iterator[dict[str, int]]:
    """Every way to write `ranks` as a product of degrees."""
    if len(names) == 1:
        yield {names[0]: ranks}
        return
    for degree in (degree for degree in range(1, ranks + 1) if ranks % degree == 0):
        for rest in _mixes(ranks // degree, names[1:]):
            yield {names[0]: degree, **rest}


def _allowed(options: Mapping[str, Any], world_size: int, folder: Path | None) -> bool:
    try:
        check_degrees(options, world_size)
        if folder:
            check_model(folder, options, [])
    except UsageError:
        return False
    return True


def check_cache(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a mix that FastCache does not support, by name."""
    refused = {
        "use_fast_attn": "DiTFastAttn reuses attention outputs on its own schedule",
        "vae_parallel_size": "ranks that only decode take no cache decisions",
        "use_ray": "this command runs on torchrun; take batch run --ray, or RayDiffusionPipeline in a script",
    }
    for name, why in refused.items():
        if options.get(name):
            raise UsageError(f"{name} with fastcache is not supported: {why}", f"leave {name} out")
    if (options.get("fully_shard_degree") or 1) > 1:
        raise UsageError("fully_shard_degree > 1 with fastcache is not supported yet", "set fully_shard_degree=1")


def check_decision(config: FastCacheConfig, stages: int) -> None:
    """Raise UsageError where the first of several PipeFusion stages cannot decide for the others' blocks."""
    if stages > 1 and config.pp_decision == "leader" and config.granularity != "step":
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


def check_model(folder: Path, options: Mapping[str, Any], known: list[str]) -> None:
    """Raise UsageError where a checkpoint on disk cannot run in this layout; `known` are the cacheable transformers.

    An empty `known` means that no cache is asked for.
    """
    kind, transformer = transformer_class(folder), _config(folder / "transformer" / "config.json")
    if known and kind not in known:
        raise UsageError(
            f"FastCache does not know {kind} of {folder}; it knows {', '.join(known)}", "leave --cache out"
        )
    heads, wanted = transformer.get("num_attention_heads"), degrees(options)
    share = wanted["ulysses_degree"] * wanted["tensor_parallel_degree"]
    if heads and heads % share:
        raise UsageError(f"{heads} attention heads of {kind} do not divide by ulysses x tensor parallel = {share}")
    blocks = sum(transformer.get(name) or 0 for name in ("num_layers", "num_single_layers"))
    if blocks and blocks < wanted["pipefusion_parallel_degree"]:
        raise UsageError(f"{blocks} blocks of {kind} are too few for {wanted['pipefusion_parallel_degree']} stages")
    if kind == VIDEO and (also := [name for name, degree in wanted.items() if degree > 1 and name not in OF_VIDEO]):
        raise UsageError(f"xDiT has no {also[0]} for {kind}", f"it has {', '.join(OF_VIDEO)}")
    if wanted["tensor_parallel_degree"] > 1 and kind != "FluxTransformer2DModel":
        raise UsageError(f"xDiT has no tensor parallelism for {kind}", "set tensor_parallel_degree=1")
    if wanted["cfg_degree"] > 1 and kind == "FluxTransformer2DModel":
        raise UsageError("FLUX.1 runs no second guidance branch", "leave use_cfg_parallel out")


def pipeline_class(folder: Path) -> str:
    """Class name of the pipeline saved in `folder`. Raises UsageError where it holds none."""
    return _config(folder / "model_index.json").get("_class_name", "")


def transformer_class(folder: Path) -> str:
    """Class name of the transformer saved in `folder`. Raises UsageError where the pipeline has none."""
    entry = _config(folder / "model_index.json").get("transformer")
    if not entry or not entry[1]:
        raise UsageError(f"{folder} holds a {pipeline_class(folder)} without transformer", "FastCache needs one")
    return entry[1]


def pixels_per_token(folder: Path) -> int:
    """Width and height of one token of the pipeline saved in `folder`, in pixels: sizes are multiples of it."""
    transformer, vae = (_config(folder / part / "config.json") for part in ("transformer", "vae"))
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels") or [0] * 4
    patch = 2 if transformer_class(folder) in PACKED else transformer.get("patch_size", 1)
    shrinks = vae.get("scale_factor_spatial") or 2 ** (len(levels) - 1)
    return shrinks * (patch if isinstance(patch, int) else max(patch))


def _check_pipefusion(options: Mapping[str, Any], stages: int) -> None:
    patches, warmup = options.get("num_pipeline_patch"), options.get("warmup_steps")
    if stages == 1:
        return
    if patches is not None and patches < stages:
        raise UsageError(f"num_pipeline_patch={patches} leaves stages idle", f"set at least {stages}, one per stage")
    check_warmup(1 if warmup is None else warmup)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"{path.parent} is not a diffusers pipeline folder: {path.name} is missing")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None
