"""Real xDiT behind one call: start the ranks, load a pipeline, generate images for prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import video

RANK_DEFAULTS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
NOT_SUPPORTED = ("CogVideoXPipeline", "ConsisIDPipeline", "LattePipeline", "FluxControlPipeline")
BINNED_SAMPLE_SIZES = (32, 64, 128)  # the only ones for which diffusers' PixArt has tables of aspect ratios


def rank() -> int:
    """This process's rank as torchrun set it; 0 where torchrun did not start it."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of ranks that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def default_dtype() -> str:
    """float32 on a CPU, bfloat16 on an accelerator."""
    return "bfloat16" if cpu.has_accelerator() else "float32"


def prepare() -> None:
    """Make xfuser importable here, quiet unless LOG_LEVEL says otherwise. Raises RuntimeError as `cpu.prepare`."""
    os.environ.setdefault("LOG_LEVEL", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries tell each other, once per rank
    cpu.prepare()


@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts that are generated together, one seed each; `indices` number them over the whole job."""

    indices: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]


class Engine:
    """An xDiT pipeline on all ranks of the job.

    Args:
        model: folder or hub id of a diffusers pipeline that xDiT has a wrapper for.
        options: fields of `xFuserArgs` (degrees, runtime options).
        dtype: a key of `DTYPES`; also the type that PipeFusion sends.
    Raises:
        ValueError: xDiT has no wrapper for the pipeline, or it is not one from text.
    """

    def __init__(self, model: str, options: dict[str, Any], dtype: str) -> None:
        for name, value in RANK_DEFAULTS.items():
            os.environ.setdefault(name, value)
        engine_config = _engine_config(model, options)
        engine_config.runtime_config.dtype = DTYPES[dtype]
        silence_loading()
        kind = _pipeline_name(model)
        self.is_video = kind in video.PIPELINES
        if self.is_video:
            self.pipe = video.load(model, engine_config, DTYPES[dtype])
        else:
            wrapper = _wrapper_of(kind)
            self.pipe = wrapper.from_pretrained(model, engine_config=engine_config, torch_dtype=DTYPES[dtype])
        if cpu.has_accelerator():
            self.pipe = self.pipe.to(f"cuda:{os.environ['LOCAL_RANK']}")
        self._call = self.pipe
        self.accepts = set(inspect.signature(type(self.pipe).__call__).parameters)
        self.replicas = engine_config.parallel_config.dp_degree
        _apply_vae_options(self.pipe, options)

    def generate(self, batch: Batch, **call: Any) -> dict[int, Any]:
        """Run one batch; returns {index: PIL image} on the rank of each replica that holds images, else {}.

        Every rank must call it with the same batch. Arguments that the pipeline does not take are left out. A video
        comes as one image, see `video.strip`.
        """
        mine = self._share(batch)
        arguments = {"use_resolution_binning": self._binned(), "output_type": "pil", **call}
        arguments = {name: value for name, value in arguments.items() if name in self.accepts and value is not None}
        arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in mine.seeds]
        if self.is_video:
            videos = self._call(prompt=list(mine.prompts), **arguments).frames
            return dict(zip(mine.indices, video.pictures(videos), strict=True)) if video.first_of_replica() else {}
        output = self._call(prompt=list(self._padded(batch).prompts), **arguments)
        return dict(zip(mine.indices, output.images, strict=False)) if output is not None else {}

    @contextlib.contextmanager
    def differentiable(self) -> Iterator[None]:
        """Latents keep their graph for the length of a with block; in one process only.

        Pipelines' own calls forbid gradients: what they wrap is called instead, which in one process is diffusers'.
        """
        pipe = getattr(self.pipe, "module", self.pipe)
        self._call = functools.partial(inspect.unwrap(type(pipe).__call__), pipe)
        try:
            yield
        finally:
            self._call = self.pipe

    def _binned(self) -> bool:
        config = getattr(getattr(self.pipe, "transformer", None), "config", None)
        return getattr(config, "sample_size", None) in BINNED_SAMPLE_SIZES

    def _padded(self, batch: Batch) -> Batch:
        """A batch that splits evenly over data-parallel replicas; the last prompt fills up."""
        missing = -len(batch.prompts) % self.replicas
        fields = (getattr(batch, field.name) for field in dataclasses.fields(batch))
        return Batch(*(values + values[-1:] * missing for values in fields))

    def _share(self, batch: Batch) -> Batch:
        """What xDiT gives this replica of a batch: contiguous chunks in replica order."""
        if self.replicas == 1:
            return batch
        from xfuser.core.distributed import get_data_parallel_rank

        padded = self._padded(batch)
        size = len(padded.prompts) // self.replicas
        chunk = slice(get_data_parallel_rank() * size, (get_data_parallel_rank() + 1) * size)
        return Batch(padded.indices[chunk], padded.prompts[chunk], padded.seeds[chunk])


def gather(value: Any) -> list[Any]:
    """Values of all ranks, in rank order, on the first rank; an empty list elsewhere."""
    if world_size() == 1:
        return [value]
    from xfuser.core.distributed import get_world_group

    everyone: list[Any] | None = [None] * world_size() if rank() == 0 else None
    torch.distributed.gather_object(value, everyone, dst=0, group=get_world_group().cpu_group)
    return everyone or []


def share(value: Any) -> list[Any]:
    """Values of all ranks, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    from xfuser.core.distributed import get_world_group

    everyone: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(everyone, value, group=get_world_group().cpu_group)
    return everyone


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks of a CPU tensor, in rank order, so that every rank holds the same bits."""
    return torch.stack(share(tensor)).sum(dim=0) if world_size() > 1 else tensor


def both_branches(states: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [2B, ...], uncond then cond, where CFG parallelism gave each rank one branch; else as given."""
    if world_size() == 1:
        return states
    from xfuser.core.distributed import get_cfg_group

    return get_cfg_group().all_gather(states.contiguous())


def wait() -> None:
    """Finish this rank's work on the accelerator."""
    if cpu.has_accelerator():
        torch.cuda.synchronize()


def wait_for_all() -> None:
    """Finish this rank's work and wait until every rank has: around what is timed."""
    wait()
    if world_size() > 1:
        torch.distributed.barrier()


def batches(prompts: Sequence[str], size: int, seed: int) -> list[Batch]:
    """Split prompts into batches; prompt i has seed `seed + i`, whatever the batch size."""
    numbered = [(index, prompt, seed + index) for index, prompt in enumerate(prompts)]
    return [
        Batch(*map(tuple, zip(*numbered[start : start + size], strict=True))) for start in range(0, len(prompts), size)
    ]


def finish() -> None:
    """Leave the process groups in order, so that no rank warns about another."""
    if torch.distributed.is_initialized():
        wait_for_all()
        torch.distributed.destroy_process_group()


def _engine_config(model: str, options: dict[str, Any]) -> Any:
    from xfuser import xFuserArgs

    known = {field.name for field in dataclasses.fields(xFuserArgs)}
    chosen = {name: value for name, value in options.items() if name in known and value is not None}
    chosen.pop("cache_method", None)  # the plugin is switched on and off by its caller, not by xDiT
    backend = chosen.pop("attention_backend", None) or cpu.attention_backend(chosen.get("ring_degree", 1))
    engine_config, _ = xFuserArgs(**{**chosen, "model": model, "attention_backend": backend}).create_config()
    return engine_config


def _pipeline_name(model: str) -> str:
    """Class name of the diffusers pipeline saved at `model`."""
    import diffusers

    return diffusers.DiffusionPipeline.load_config(model)["_class_name"]


def _wrapper_of(name: str) -> Any:
    """xDiT's pipeline class for a diffusers pipeline class."""
    import diffusers
    from xfuser.model_executor.pipelines.register import xFuserPipelineWrapperRegister

    if name in NOT_SUPPORTED:
        raise ValueError(f"generate does not take {name}: it needs an image, or xDiT has no runner for its videos")
    try:
        return xFuserPipelineWrapperRegister.get_class(getattr(diffusers, name))
    except (AttributeError, ValueError):
        known = sorted(kind.__name__ for kind in xFuserPipelineWrapperRegister._XFUSER_PIPE_MAPPING)
        known += video.PIPELINES
        raise ValueError(f"xDiT has no pipeline for {name}; it has {', '.join(known)}") from None


def _apply_vae_options(pipe: Any, options: dict[str, Any]) -> None:
    if options.get("enable_tiling"):
        pipe.vae.enable_tiling()
    if options.get("enable_slicing"):
        pipe.vae.enable_slicing()


def silence_loading() -> None:
    """No progress bars of loading: one per rank would scramble the terminal."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
