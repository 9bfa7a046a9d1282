"""What a worker on one rank uses: report its results, and lay xDiT out anew for each case."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from fastcache_xdit.host import cpu, group
from tests import tiny
from tests.parallel import hand_made, place

WRAPPERS = {
    "pixart": "xFuserPixArtAlphaPipeline",
    "pixart_sigma": "xFuserPixArtSigmaPipeline",
    "flux": "xFuserFluxPipeline",
    "flux2": "xFuserFlux2Pipeline",
    "sd3": "xFuserStableDiffusion3Pipeline",
}


def report(main: Callable[..., Any]) -> None:
    """Run `main` with the arguments of `run_ranks` and hand its result back; the last line of every worker."""
    faulthandler.register(signal.SIGUSR1)  # the launcher asks where a rank hangs
    folder = Path(sys.argv[1])
    result = main(**json.loads((folder / "arguments.json").read_text()))
    torch.save(result, folder / f"rank{os.environ['RANK']}.pt")
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def engine(**degrees: Any) -> Any:
    """Return xDiT's engine config in fp32 for `xFuserArgs` degrees; spare ranks become data-parallel replicas."""
    cpu.prepare()
    from xfuser import xFuserArgs
    from xfuser.core.distributed import init_distributed_environment

    if not dist.is_initialized():
        backend = place.backend(int(os.environ["WORLD_SIZE"]))
        init_distributed_environment(local_rank=place.local_rank(), backend=backend)
    names = ("ulysses_degree", "ring_degree", "pipefusion_parallel_degree", "tensor_parallel_degree")
    used = 2 if degrees.get("use_cfg_parallel") else 1
    for name in names:
        used *= degrees.get(name, 1)
    degrees = {"data_parallel_degree": dist.get_world_size() // used, **degrees}
    backend = cpu.attention_backend(degrees.get("ring_degree", 1))
    config, _ = xFuserArgs(attention_backend=backend, **degrees).create_config()
    config.runtime_config.dtype = torch.float32
    return config


def xdit(family: str, runner: bool = False, model: dict | None = None, **degrees: Any) -> Any:
    """Return a tiny pipeline laid out by xDiT.

    `runner` builds Flux as xDiT's runner does at one pipeline stage, otherwise it is xDiT's own pipeline wrapper.
    `model` changes the transformer's config, `degrees` are fields of `xFuserArgs`.
    """
    config = engine(**degrees)
    import xfuser

    plain = tiny.pipeline(family, **(model or {})).to(place.device())
    if family == "wan":
        return _runner_wan(plain, config)
    return _runner_flux(plain, config) if runner else getattr(xfuser, WRAPPERS[family])(plain, config)


@contextlib.contextmanager
def by_hand(family: str, **degrees: Any) -> Iterator[Any]:
    """Give a plain diffusers PixArt pipeline that a script of its own divides among the ranks of xDiT's groups."""
    _start_groups(engine(**degrees).parallel_config)
    pipe = tiny.pipeline(family)
    hand_made.divide(pipe.transformer)
    yield pipe
    take_down()


@contextlib.contextmanager
def layout(family: str, **settings: Any) -> Iterator[Any]:
    """Give the pipeline of `xdit`; leaving takes xDiT's groups and caches down, to make room for the next layout."""
    try:
        yield xdit(family, **settings)
    except Exception:
        traceback.print_exc()
        forget()  # without waiting: ranks that wait for this one notice that their connection closed
        raise
    take_down()


def generate(
    pipe: Any, family: str, steps: int = 6, guidance: float = 3.5, call: dict | None = None, **changes: Any
) -> torch.Tensor | None:
    """Run one request from seeded embeddings and return its latents, None on ranks that xDiT leaves without.

    `changes` are arguments of `tiny.call_arguments`, `call` are further ones of the pipeline.
    """
    from xfuser.core.distributed import get_runtime_state

    arguments = place.moved({**tiny.call_arguments(family, **changes), **(call or {})})
    if type(pipe).__name__ == "FluxPipeline":  # xDiT's runner says this before each call
        length = arguments["max_sequence_length"]
        get_runtime_state().set_input_parameters(
            batch_size=1, num_inference_steps=steps, max_condition_sequence_length=length
        )
    output = pipe(**arguments, num_inference_steps=steps, guidance_scale=guidance)
    return None if output is None else output[0].cpu()


def _runner_flux(plain: Any, config: Any) -> Any:
    from xfuser.core.distributed import initialize_runtime_state
    from xfuser.model_executor.models.transformers.transformer_flux import xFuserFlux1Transformer2DWrapper

    _start_groups(config.parallel_config)
    names = ("patch_size", "in_channels", "num_layers", "num_single_layers", "attention_head_dim")
    names += ("num_attention_heads", "joint_attention_dim", "pooled_projection_dim", "guidance_embeds")
    settings = {name: plain.transformer.config[name] for name in names}
    axes = tuple(plain.transformer.config["axes_dims_rope"])
    model = xFuserFlux1Transformer2DWrapper(**settings, axes_dims_rope=axes).eval().requires_grad_(False)
    model.load_state_dict(plain.transformer.state_dict())
    plain.register_modules(transformer=model)
    initialize_runtime_state(plain, config)
    return plain


def _runner_wan(plain: Any, config: Any) -> Any:
    from xfuser.core.distributed import initialize_runtime_state
    from xfuser.model_executor.models.transformers.transformer_wan import xFuserWanTransformer3DWrapper

    model = xFuserWanTransformer3DWrapper.from_config(plain.transformer.config).eval().requires_grad_(False)
    model.load_state_dict(plain.transformer.state_dict())
    plain.register_modules(transformer=model)
    initialize_runtime_state(plain, config)
    return plain


def _start_groups(parallel: Any) -> None:
    from xfuser.core.distributed import initialize_model_parallel

    initialize_model_parallel(
        data_parallel_degree=parallel.dp_degree,
        classifier_free_guidance_degree=parallel.cfg_degree,
        sequence_parallel_degree=parallel.sp_degree,
        ulysses_degree=parallel.ulysses_degree,
        ring_degree=parallel.ring_degree,
        tensor_parallel_degree=parallel.tp_degree,
        pipeline_parallel_degree=parallel.pp_degree,
    )


def answer_or_text(make: Callable[[], Any]) -> Any:
    """Return what `make` makes in a layout, which is then taken down, or its exception as text."""
    try:
        answer = make()
    except Exception as error:
        traceback.print_exc()
        forget()
        return f"{type(error).__name__}: {error}"
    take_down()
    return answer


def take_down() -> None:
    """Wait for all ranks, as no message may be under way when the groups go, then make room for the next layout."""
    dist.barrier()
    forget()


def forget() -> None:
    """Forget xDiT's groups, runtime state and stored keys and values."""
    from xfuser.core.cache_manager import cache_manager
    from xfuser.core.distributed import parallel_state, runtime_state

    parallel_state.destroy_model_parallel()
    parallel_state._DIT = None
    _destroy_others()
    runtime_state._RUNTIME = None
    cache_manager.get_cache_manager().cache.clear()


def _destroy_others() -> None:
    """Destroy what xDiT leaves of its groups: each has three threads that wake up all the time."""
    from xfuser.core.distributed import parallel_state

    world = parallel_state._WORLD
    kept = {dist.group.WORLD, world.device_group, world.cpu_group, *group._GROUPS.values()}
    for other in [other for other in distributed_c10d._world.pg_map if other not in kept]:
        dist.destroy_process_group(other)
