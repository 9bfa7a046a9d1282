"""Plain generation with fewer steps, by other solvers than the model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fastcache_xdit.bench.peers.peer import Peer, Subject, shares
from fastcache_xdit.errors import UsageError
from fastcache_xdit.plugin import repaired
from fastcache_xdit.undo import Undo


def _shift(config: dict[str, Any]) -> float:
    return config.get("flow_shift", config.get("shift", 1.0))


def _single_step(name: str, config: dict[str, Any]) -> Any:
    """Return diffusers' flow-matching Euler or Heun, with what all pipelines ask a scheduler for."""
    import diffusers

    scheduler = getattr(diffusers, name)(config["num_train_timesteps"], _shift(config))
    original = scheduler.set_timesteps

    def set_timesteps(num_inference_steps: int, device: Any = None, sigmas: Any = None, mu: Any = None) -> None:
        """Set evenly spaced noise levels from 1, none of them so near to 0 that its step is in vain."""
        scheduler.sigma_max, scheduler.sigma_min = 1.0, 1 / num_inference_steps
        original(num_inference_steps, device=device)

    scheduler.set_timesteps = set_timesteps
    scheduler.init_noise_sigma = 1.0
    scheduler.scale_model_input = lambda sample, timestep=None: sample
    return scheduler


def _multistep(name: str, config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, name)(
        num_train_timesteps=config["num_train_timesteps"],
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=_shift(config),
    )


SOLVERS: dict[str, tuple[Callable[[str, dict[str, Any]], Any], str]] = {
    "Euler": (_single_step, "FlowMatchEulerDiscreteScheduler"),
    "Heun": (_single_step, "FlowMatchHeunDiscreteScheduler"),
    "DPM++ 2M": (_multistep, "DPMSolverMultistepScheduler"),
    "UniPC": (_multistep, "UniPCMultistepScheduler"),
}


def steps_for(solver: str, evaluations: int) -> int:
    """Return how many steps take at most so many evaluations; Heun's take two each, but for the last."""
    return (evaluations + 1) // 2 if solver == "Heun" else evaluations


@contextlib.contextmanager
def _fewer(subject: Subject, solver: str, share: float) -> Iterator[dict[str, Any]]:
    config = dict(subject.pipe.scheduler.config)
    if config.get("use_dynamic_shifting"):
        raise UsageError("the model's noise levels depend on the size of the picture", "only its own solver knows how")
    make, name = SOLVERS[solver]
    with repaired(subject.pipe), Undo() as undo:
        undo.set(subject.pipe, "scheduler", make(name, config))
        yield {"num_inference_steps": steps_for(solver, round(share * subject.steps))}


def peers() -> list[Peer]:
    """Return fewer steps with each solver."""
    note = "no cache; compared with the images of all steps by the model's own solver"
    return [Peer(f"fewer steps, {solver}", "diffusers", _fewer, shares(solver=solver), note=note) for solver in SOLVERS]
