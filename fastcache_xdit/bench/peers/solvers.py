"""Plain generation with fewer steps, by other solvers than the model's own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fastcache_xdit.bench.peers.peer import Peer, Subject, shares
from fastcache_xdit.errors import UsageError
from fastcache_xdit.plugin import repaired
from fastcache_xdit.undo import Undo

SOLVERS = {
    "Euler": "FlowMatchEulerDiscreteScheduler",
    "Heun": "FlowMatchHeunDiscreteScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "UniPC": "UniPCMultistepScheduler",
}


APART = 1e-3  # of 1000: Heun evaluates twice at a timestep, and calls at the same one are counted as one step


def _made(solver: str, config: dict[str, Any]) -> Any:
    """Return a scheduler for the noise levels of the model's own, with what all pipelines ask a scheduler for."""
    import diffusers

    kind, training_steps = getattr(diffusers, SOLVERS[solver]), config["num_train_timesteps"]
    shift = config.get("flow_shift", config.get("shift", 1.0))
    if solver in ("Euler", "Heun"):
        scheduler = kind(training_steps, shift)
        scheduler.init_noise_sigma = 1.0
        scheduler.scale_model_input = lambda sample, timestep=None: sample
    else:
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
        scheduler = kind(training_steps, **flow)
    scheduler.set_timesteps = _setting(scheduler, scheduler.set_timesteps)
    return scheduler


def _setting(scheduler: Any, original: Callable[..., None]) -> Callable[..., None]:
    def set_timesteps(
        num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        """Set evenly spaced noise levels from 1, none of them so near to 0 that its step is in vain."""
        steps = num_inference_steps or len(sigmas)
        scheduler.sigma_max, scheduler.sigma_min = 1.0, 1 / steps  # of Euler and Heun; the others do so themselves
        original(steps, device=device)
        if len(scheduler.timesteps) > steps:
            scheduler.timesteps[2::2] -= APART

    return set_timesteps


def steps_for(solver: str, evaluations: int) -> int:
    """Return how many steps take at most so many evaluations; Heun's take two each, but for the last."""
    return (evaluations + 1) // 2 if solver == "Heun" else evaluations


@contextlib.contextmanager
def _fewer(subject: Subject, solver: str, share: float) -> Iterator[dict[str, Any]]:
    config = dict(subject.pipe.scheduler.config)
    if config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise UsageError("the model does not predict flows", "these solvers are for models that do")
    if config.get("use_dynamic_shifting"):
        raise UsageError("the model's noise levels depend on the size of the picture", "only its own solver knows how")
    with repaired(subject.pipe), Undo() as undo:
        undo.set(subject.pipe, "scheduler", _made(solver, config))
        yield {"num_inference_steps": steps_for(solver, round(share * subject.steps))}


def peers() -> list[Peer]:
    """Return fewer steps with each solver."""
    note = "no cache; compared with the images of all steps by the model's own solver"
    return [Peer(f"fewer steps, {solver}", "diffusers", _fewer, shares(solver=solver), note=note) for solver in SOLVERS]
