"""Import xDiT, build its options, and load a checkpoint into its classes."""

from __future__ import annotations

import copy
import dataclasses
import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host import cpu
from fastcache_xdit.host.xdit import flags, hub, kinds, video, world
from fastcache_xdit.host.xdit.layout import Layout

if TYPE_CHECKING:
    from xfuser import xFuserArgs

XditOptions: TypeAlias = "xFuserArgs"  # xDiT is imported where it is used, once `prepare` has run
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in flags.DTYPE_NAMES}


def default_dtype() -> str:
    """Choose float32 on a CPU, bfloat16 on an accelerator."""
    return "bfloat16" if cpu.has_accelerator() else "float32"


def prepare() -> None:
    """Make xfuser importable here, quiet unless LOG_LEVEL says otherwise. Raises UsageError as `cpu.prepare`."""
    os.environ.setdefault("LOG_LEVEL", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)  # what libraries tell each other, once per rank
    cpu.prepare()


def xdit_options(values: Mapping[str, Any]) -> XditOptions:
    """Build xDiT's options from those of `values` that are its own, by name; None counts as not given.

    Raises:
        UsageError: a value, or a mix of values, that xDiT refuses.
    """
    from xfuser import xFuserArgs

    known = {field.name for field in dataclasses.fields(xFuserArgs)}
    try:
        return xFuserArgs(**{name: value for name, value in values.items() if name in known and value is not None})
    except (ValueError, OSError) as error:
        raise UsageError(f"xDiT refuses these options: {error}") from None


def with_values(options: XditOptions, **values: Any) -> XditOptions:
    """Copy xDiT's options with other values; dataclasses.replace fails, because building them alters some fields."""
    changed = copy.copy(options)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def load_pipeline(model: str, options: XditOptions, dtype: str, kind: str | None = None) -> Any:
    """Load the checkpoint `model` (a folder or a hub id) into xDiT's classes and return the pipeline, in place.

    Every rank calls it; xDiT starts the process groups on the way.

    Args:
        model: folder or hub id of a diffusers pipeline; one that xDiT has no wrapper for runs in one process.
        options: degrees and runtime options, made by `xdit_options`; their own model and cache method do not count.
        dtype: a key of `DTYPES`; also the type that PipeFusion sends.
        kind: the diffusers class to load it as, which `kinds.check_kind` takes; None for the one that it was saved as.
    Raises:
        UsageError: the model cannot be had, or cannot run in this layout, or it is not one from text.
    """
    hub.check_there(model)
    name = kind or _pipeline_name(model)
    if not kind and kinds.is_run_alone(name):
        kinds.check_alone(name, model, Layout.of(options))
    world.be_alone()
    engine_config = _engine_config(model, options)
    engine_config.runtime_config.dtype = DTYPES[dtype]
    silence_loading()
    pipe = _loaded(model, name, engine_config, DTYPES[dtype])
    if cpu.has_accelerator():
        pipe = pipe.to(f"cuda:{os.environ['LOCAL_RANK']}")
    _apply_vae_options(pipe, options)
    if options.use_torch_compile:
        _compile_the_rest(pipe)
    return pipe


def _loaded(model: str, kind: str, engine_config: Any, dtype: torch.dtype) -> Any:
    import diffusers

    if kind in video.PIPELINES:
        return video.load(model, kind, engine_config, dtype)
    if kinds.is_run_alone(kind):
        return getattr(diffusers, kind).from_pretrained(model, torch_dtype=dtype)
    return kinds.wrapper_of(kind).from_pretrained(model, engine_config=engine_config, torch_dtype=dtype)


def _engine_config(model: str, options: XditOptions) -> Any:
    backend = options.attention_backend or cpu.attention_backend(options.ring_degree)
    # the plugin is switched on and off by its caller, not by xDiT
    chosen = with_values(options, model=model, attention_backend=backend, cache_method=None)
    try:
        engine_config, _ = chosen.create_config()
    except ValueError as error:
        raise UsageError(f"xDiT refuses these options: {error}") from None
    return engine_config


def _pipeline_name(model: str) -> str:
    """Read the class name of the diffusers pipeline saved at `model`; a hub id that is not there is a UsageError."""
    import diffusers

    try:
        return diffusers.DiffusionPipeline.load_config(model)["_class_name"]
    except OSError as error:
        raise UsageError(f"cannot read the model {model}: {' '.join(str(error).split())}") from None


def _apply_vae_options(pipe: Any, options: XditOptions) -> None:
    if options.enable_tiling:
        pipe.vae.enable_tiling()
    if options.enable_slicing:
        pipe.vae.enable_slicing()


def _compile_the_rest(pipe: Any) -> None:
    """Compile the denoisers that xDiT's option `use_torch_compile` leaves out: those that no class of its own loads."""
    for denoiser in (getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet")):
        if isinstance(denoiser, torch.nn.Module) and "forward" not in vars(denoiser):  # where xDiT puts a compiled one
            denoiser.compile()


def silence_loading() -> None:
    """Switch off the progress bars of loading: one per rank would scramble the terminal."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()
