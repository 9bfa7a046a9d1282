"""Joint flow-matching training of the transformer and the text encoder."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from torch import nn
from transformers import T5EncoderModel

from . import training
from .components import build_text_encoder, build_tokenizer, build_transformer
from .flow import SceneStream, TextToLatent, flow_loss

CHECKPOINT = "transformer.pt"
# A scene is drawn and encoded once and then used with several (sigma, noise) draws, since encoding is not free.
_DRAWS = 4
# One single-threaded worker per core on its share of the batch: on a busy machine this is much faster than parallel
# kernels, whose every call waits for the slower core.
_WORKERS = 2
_MUON_RATE, _ADAMW_RATE = 1.5e-3, 1e-3
_EMA_DECAY = 0.99


def build_optimizers(model: TextToLatent) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer blocks, AdamW for everything else."""
    matrices = [
        p for n, p in model.transformer.transformer_blocks.named_parameters() if n.endswith("weight") and p.ndim == 2
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        *(
            torch.optim.Muon(matrices[i::_WORKERS], lr=_MUON_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
            for i in range(_WORKERS)
        ),
        torch.optim.AdamW(rest, lr=_ADAMW_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]


@dataclass
class Run:
    """Everything that a checkpoint holds, and the scenes per step."""

    model: TextToLatent
    rng: random.Random
    scenes: int
    optimizers: list[torch.optim.Optimizer] = field(init=False)
    average: training.MovingAverage = field(init=False)
    step: int = 0
    samples: int = 0
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.optimizers = build_optimizers(self.model)
        self.average = training.MovingAverage(list(self.model.parameters()), _EMA_DECAY)

    def state(self, spent: float) -> dict:
        """What to save, after ``spent`` seconds of training."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.shadow,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "counters": (self.step, self.samples, spent),
            "random": (self.rng.getstate(), torch.get_rng_state()),
        }

    def restore(self, state: dict) -> None:
        """Continue from a saved state."""
        self.model.load_state_dict(state["model"])
        self.average.shadow = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.samples, self.spent = state["counters"]
        self.rng.setstate(state["random"][0])
        torch.set_rng_state(state["random"][1])


def _gradients(run: Run, stream: SceneStream) -> tuple[float, list[torch.Tensor]]:
    ids, mask, latents = stream.next(run.scenes // _WORKERS)
    loss = flow_loss(run.model, ids, mask, latents.repeat_interleave(_DRAWS, 0))
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


def _step(run: Run, streams: list[SceneStream], pool: ThreadPoolExecutor, progress: float) -> float:
    losses, parts = zip(*pool.map(lambda stream: _gradients(run, stream), streams), strict=True)
    parameters = list(run.model.parameters())
    _set_gradients(parameters, list(parts))
    for optimizer in run.optimizers:
        training.set_learning_rate(optimizer, training.learning_rate_factor(run.step, progress))
    list(pool.map(lambda optimizer: optimizer.step(), run.optimizers))
    run.average.update(parameters, run.step)
    run.step += 1
    run.samples += run.scenes * _DRAWS
    return sum(losses) / len(losses)


def _steps(run: Run, streams: list[SceneStream], clock: training.Clock, run_dir: Path) -> None:
    log, losses, saved = training.LossLog(run_dir / "transformer-loss.jsonl"), [], clock.spent
    pool = ThreadPoolExecutor(_WORKERS, initializer=torch.set_num_threads, initargs=(1,))
    # Compiled blocks are built on first use: by one worker alone, so that the workers do not build them twice.
    pool.submit(_gradients, run, streams[0]).result()
    while clock.progress < 1:
        losses.append(_step(run, streams, pool, clock.progress))
        if len(losses) == training.LOG_EVERY_STEPS:
            log.write(step=run.step, samples=run.samples, seconds=clock.spent, loss=sum(losses) / len(losses))
            losses = []
        if clock.spent - saved > training.SAVE_EVERY_SECONDS:
            saved = clock.spent
            training.save_checkpoint(run_dir / CHECKPOINT, run.state(saved))


def _loop(run: Run, streams: list[SceneStream], clock: training.Clock, run_dir: Path) -> None:
    try:
        _steps(run, streams, clock, run_dir)
    finally:
        # Also when the run is stopped, so that nothing is lost.
        training.save_checkpoint(run_dir / CHECKPOINT, run.state(clock.spent))


@dataclass(frozen=True)
class TransformerOptions:
    """How to train.

    Attributes:
        minutes: total budget of wall time over all resumed runs; the learning rate reaches zero at its end.
        seed: seed of scenes and noise.
        scenes: scenes per step, each used with four draws of noise.
        compiled: compile the transformer blocks, which needs a C++ compiler and takes a minute.
        start_from: pipeline folder whose text encoder and transformer to start from instead of random weights.
    """

    minutes: float
    seed: int = 0
    scenes: int = 24
    compiled: bool = False
    start_from: Path | None = None


def train_transformer(options: TransformerOptions, run_dir: Path) -> None:
    """Train the text encoder and the transformer; continues the checkpoint in ``run_dir`` where there is one.

    ``run_dir`` must hold the trained autoencoder in ``vae/``; the checkpoint and the loss log are written there.
    """
    _use_plain_attention()
    rng = training.seed_everything(options.seed)
    vae = AutoencoderKL.from_pretrained(run_dir / "vae")
    run = Run(_initial_model(options.start_from), rng, options.scenes)
    state = training.load_checkpoint(run_dir / CHECKPOINT)
    if state is not None:
        run.restore(state)
    if options.compiled:
        for block in run.model.transformer.transformer_blocks:
            block.compile(dynamic=False, options={"cpp.threads": 1})
    streams = [SceneStream(vae, build_tokenizer(), random.Random(rng.random())) for _ in range(_WORKERS)]
    _loop(run, streams, training.Clock(options.minutes * 60, run.spent), run_dir)


def _use_plain_attention() -> None:
    # On CPU the fused kernels' bfloat16 backward takes several times as long as plain matrix products at this size.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def _initial_model(start_from: Path | None) -> TextToLatent:
    if start_from is None:
        return TextToLatent(build_text_encoder(len(build_tokenizer())), build_transformer()).train()
    text_encoder = T5EncoderModel.from_pretrained(start_from / "text_encoder", dtype=torch.float32)
    transformer = PixArtTransformer2DModel.from_pretrained(start_from / "transformer", torch_dtype=torch.float32)
    return TextToLatent(text_encoder, transformer).train()
