"""Train a model's transformer jointly with its text encoders, on the batches that its recipe makes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from . import training
from .flow import DRAWS
from .recipe import ModelRecipe, Stream

CHECKPOINT = "transformer.pt"
# Each core has a single-threaded worker for its part of the batch. On a busy machine this is much faster than parallel
# kernels, whose every call waits for the slowest core.
_MOST_WORKERS = 2
_MUON_RATE, _ADAMW_RATE = 1.5e-3, 1e-3


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """List all blocks of the module's transformer, whatever lists it keeps them in."""
    transformer = model.get_submodule("transformer")
    return [block for part in transformer.children() if isinstance(part, nn.ModuleList) for block in part]


def build_optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Use Muon for the matrices of attention and feed-forward in the blocks, and AdamW for everything else."""
    named = [item for block in transformer_blocks(model) for item in block.named_parameters()]
    matrices = [p for n, p in named if n.endswith("weight") and p.ndim == 2 and "norm" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        *(
            torch.optim.Muon(part, lr=_MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
            for part in (matrices[i::_MOST_WORKERS] for i in range(_MOST_WORKERS))
        ),
        torch.optim.AdamW(rest, lr=_ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]


@dataclass(frozen=True)
class TransformerOptions:
    """How to train.

    Attributes:
        minutes: total budget of wall time over all resumed runs; the learning rate reaches zero at its end.
        seed: of scenes and noise.
        scenes: scenes per step, each used with four draws of noise.
        workers: threads, 1 or 2, that share the scenes of a step.
        compiled: whether to compile the blocks, which takes a C++ compiler and a minute.
        start_from: pipeline folder with the weights to start from, instead of random ones.
    """

    minutes: float
    seed: int = 0
    scenes: int = 24
    workers: int = _MOST_WORKERS
    compiled: bool = False
    start_from: Path | None = None


@dataclass
class TrainingRun:
    """A training and everything that its checkpoint holds."""

    model: nn.Module
    rng: random.Random
    optimizers: list[torch.optim.Optimizer] = field(init=False)
    average: AveragedModel = field(init=False)
    step: int = 0
    samples: int = 0
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.optimizers = build_optimizers(self.model)
        self.average = training.moving_average(self.model)

    def state(self, spent: float) -> dict:
        """Return what to save after `spent` seconds of training."""
        return {
            "model": self.model.state_dict(),
            "average": [parameter.detach() for parameter in self.average.module.parameters()],
            "optimizers": [o.state_dict() for o in self.optimizers],
            "counters": (self.step, self.samples, spent),
            "random": (self.rng.getstate(), torch.get_rng_state()),
        }

    def restore(self, state: dict) -> None:
        """Go on from a saved state."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.samples, self.spent = state["counters"]
        self._restore_average(state["average"])
        self.rng.setstate(state["random"][0])
        torch.set_rng_state(state["random"][1])

    @torch.no_grad()
    def _restore_average(self, values: list[torch.Tensor]) -> None:
        self.average = training.moving_average(self.model, self.step)
        for parameter, value in zip(self.average.module.parameters(), values, strict=True):
            parameter.copy_(value)


def _gradients(run: TrainingRun, stream: Stream, scenes: int) -> tuple[float, list[torch.Tensor]]:
    batch = stream.next(scenes)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = run.model(*batch.inputs)
    loss = (velocity.float() - batch.target).pow(2).mean()
    return loss.item(), list(torch.autograd.grad(loss, list(run.model.parameters())))


@torch.no_grad()
def _set_gradients(parameters: list[nn.Parameter], parts: list[list[torch.Tensor]]) -> None:
    total = parts[0]
    for part in parts[1:]:
        torch._foreach_add_(total, part)
    torch._foreach_div_(total, len(parts))
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, 1.0)


def _step(run: TrainingRun, streams: list[Stream], scenes: int, pool: ThreadPoolExecutor, progress: float) -> float:
    share = scenes // len(streams)
    losses, parts = zip(*pool.map(lambda stream: _gradients(run, stream, share), streams), strict=True)
    _set_gradients(list(run.model.parameters()), list(parts))
    for optimizer in run.optimizers:
        training.set_learning_rate(optimizer, training.learning_rate_factor(run.step, progress))
    list(pool.map(lambda optimizer: optimizer.step(), run.optimizers))
    run.average.update_parameters(run.model)
    run.step += 1
    run.samples += share * len(streams) * DRAWS
    return sum(losses) / len(losses)


def _steps(run: TrainingRun, streams: list[Stream], scenes: int, clock: training.TrainingClock, run_dir: Path) -> None:
    log, losses, saved = training.LossLog(run_dir / "transformer-loss.jsonl"), [], clock.spent
    pool = ThreadPoolExecutor(len(streams), initializer=torch.set_num_threads, initargs=(1,))
    # Blocks are compiled on first use: let one worker do it, or both would.
    pool.submit(_gradients, run, streams[0], scenes // len(streams)).result()
    while clock.progress < 1:
        losses.append(_step(run, streams, scenes, pool, clock.progress))
        if len(losses) == training.LOG_EVERY_STEPS:
            log.write(step=run.step, samples=run.samples, seconds=clock.spent, loss=sum(losses) / len(losses))
            losses = []
        if clock.spent - saved > training.SAVE_EVERY_SECONDS:
            saved = clock.spent
            training.save_checkpoint(run_dir / CHECKPOINT, run.state(saved))


def train_transformer(recipe: ModelRecipe, options: TransformerOptions, run_dir: Path) -> None:
    """Train all parts but the autoencoder, from the checkpoint in `run_dir` where there is one.

    `run_dir` must hold the trained autoencoder in `vae/`; the checkpoint and the loss log are written there.
    """
    training.use_plain_attention()
    rng = training.seed_everything(options.seed)
    run = TrainingRun(recipe.parts(options.start_from).train(), rng)
    state = training.load_checkpoint(run_dir / CHECKPOINT)
    if state is not None:
        run.restore(state)
    if options.compiled:
        training.compile_blocks(transformer_blocks(run.model))
    streams = [recipe.stream(run_dir / "vae", random.Random(rng.random())) for _ in range(options.workers)]
    clock = training.TrainingClock(options.minutes * 60, run.spent)
    try:
        _steps(run, streams, options.scenes, clock, run_dir)
    finally:
        # also when the run is stopped
        training.save_checkpoint(run_dir / CHECKPOINT, run.state(clock.spent))
