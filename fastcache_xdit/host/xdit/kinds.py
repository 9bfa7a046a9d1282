"""The diffusers class that a checkpoint is loaded as: what its calls take, and where it can run."""

from __future__ import annotations

import difflib
import inspect
from pathlib import Path
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import checkpoint, video
from fastcache_xdit.host.xdit.layout import Layout

ALONE = "start one process; on several ranks take run, if xDiT's runner has the model, or batch, which divides items"
NOT_SUPPORTED = ("CogVideoXPipeline", "ConsisIDPipeline", "LattePipeline", "FluxControlPipeline")


def call_parameters(kind: str) -> set[str]:
    """Name what a call of this class takes; nothing for a class that diffusers does not have."""
    found = _class(kind)
    return set(inspect.signature(found.__call__).parameters) if found else set()


def wrapper_of(kind: str) -> Any:
    """Find xDiT's pipeline class for a diffusers pipeline class. Raises UsageError where it has none."""
    from xfuser.model_executor.pipelines.register import xFuserPipelineWrapperRegister

    _refuse_not_supported(kind)
    try:
        return xFuserPipelineWrapperRegister.get_class(_class(kind))
    except ValueError:
        known = sorted(each.__name__ for each in xFuserPipelineWrapperRegister._XFUSER_PIPE_MAPPING)
        known += video.PIPELINES
        raise UsageError(f"xDiT has no pipeline for {kind}", f"it has {', '.join(known)}") from None


def has_wrapper(kind: str) -> bool:
    """Tell whether xDiT divides the work of this class."""
    try:
        return kind in video.PIPELINES or bool(wrapper_of(kind))
    except UsageError:
        return False


def is_run_alone(kind: str) -> bool:
    """Tell whether diffusers makes pictures of prompts with this class and xDiT does not."""
    return "prompt" in call_parameters(kind) and not has_wrapper(kind)


def run_alone(model: str) -> str | None:
    """Return the class that a folder was saved as, if diffusers makes pictures of prompts with it and xDiT does not."""
    kind = checkpoint.pipeline_class(Path(model)) if Path(model).is_dir() else ""
    return kind if is_run_alone(kind) else None


def check_alone(kind: str, model: str, layout: Layout) -> None:
    """Raise UsageError where a command that takes prompts alone cannot run a class of which `is_run_alone` is true."""
    if layout.ranks > 1:
        raise UsageError(f"xDiT has no {kind}, so one process runs it alone, not {layout.ranks} ranks", ALONE)
    check_kind(kind, model, layout)
    if files := sorted(call_parameters(kind) & {"image", "mask_image", "control_image"}):
        raise UsageError(f"{kind} needs {files[0]} beside each prompt", "take batch, where each line names its files")


def check_kind(kind: str, model: str, layout: Layout) -> None:
    """Raise UsageError where `model` cannot be loaded as a class that was asked for, or not run in this layout."""
    _refuse_not_supported(kind)
    _check_name(kind)
    if kind not in video.PIPELINES and call_parameters(kind) & {"video", "num_frames"}:
        raise UsageError(f"{kind} makes videos", f"of these, {', '.join(video.PIPELINES)} are known here")
    if Path(model).is_dir():
        _check_parts(kind, model)
    used = [name for name, degree in layout.degrees.items() if degree > 1 and name != "data_parallel_degree"]
    if used and not has_wrapper(kind):
        raise UsageError(
            f"xDiT has no {kind}, so one process runs it alone: {used[0]} is not possible",
            "divide the items instead, with data_parallel_degree",
        )


def _check_name(kind: str) -> None:
    """Raise UsageError where diffusers has no such class, or one that leaves open which pipeline is meant."""
    import diffusers

    found = _class(kind)
    is_one = found and any("__call__" in vars(each) for each in found.__mro__)
    if not is_one and hasattr(diffusers, kind) and (found or kind.startswith("AutoPipeline")):
        raise UsageError(f"{kind} names no single pipeline", "give a class such as FluxImg2ImgPipeline")
    if not is_one:
        close = difflib.get_close_matches(kind, [name for name in dir(diffusers) if name.endswith("Pipeline")])
        hint = f"did you mean {' or '.join(close)}?" if close else "give a class such as FluxImg2ImgPipeline"
        raise UsageError(f"diffusers has no pipeline {kind}", hint)


def _check_parts(kind: str, model: str) -> None:
    """Raise UsageError where the folder `model` lacks what the class needs, or holds another transformer."""
    missing = _needed(kind) - checkpoint.parts(Path(model))
    if missing:
        raise UsageError(f"{kind} needs {', '.join(sorted(missing))}, which {model} does not have")
    wanted = [each.__name__ for each in _class(kind)._get_signature_types().get("transformer", ()) if each]
    held = checkpoint.transformer_class(Path(model))
    if wanted and held not in wanted:
        raise UsageError(f"{kind} needs a {' or '.join(wanted)}, and {model} has a {held}")


def _refuse_not_supported(kind: str) -> None:
    if kind in NOT_SUPPORTED:
        raise UsageError(f"{kind} is not taken: it needs an image, or xDiT has no runner for its videos")


def _class(kind: str) -> Any:
    import diffusers

    found = getattr(diffusers, kind, None)
    return found if isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline) else None


def _needed(kind: str) -> set[str]:
    """Name the parts that a pipeline of this class cannot do without."""
    parts, _ = _class(kind)._get_signature_keys(_class(kind))
    return set(parts) - set(_class(kind)._optional_components)
