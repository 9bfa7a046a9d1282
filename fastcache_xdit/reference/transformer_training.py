"""Joint flow-matching training of the transformer and the text encoder on latents of fresh scenes.

Convention, as the shipped scheduler samples it: x = (1 - sigma) x0 + sigma noise, timestep = 1000 sigma, and the
model predicts noise - x0.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from torch import nn
from transformers import T5EncoderModel, T5Tokenizer

from . import training
from .components import TRAIN_TIMESTEPS, build_text_encoder, build_tokenizer, build_transformer
from .shapes import caption, draw_batch, sample_scene

CHECKPOINT = "transformer.pt"
# A scene is drawn and encoded once and then used with several (sigma, noise) draws, since encoding is not free.
_SCENES, _DRAWS = 24, 4
_CAPTION_TOKENS = 16
# One single-threaded worker per core on its share of the batch: on a busy machine this is much faster than parallel
# kernels, whose every call waits for the slower core.
_WORKERS = 2
_CAPTION_DROPOUT = 0.1
_UNIFORM_SHARE = 0.25
_MUON_RATE, _ADAMW_RATE = 1.5e-3, 1e-3
_EMA_DECAY = 0.998


class TextToLatent(nn.Module):
    """The two trained parts as one module: caption tokens and noisy latents in, velocity out."""

    def __init__(self, text_encoder: T5EncoderModel, transformer: PixArtTransformer2DModel) -> None:
        super().__init__()
        self.text_encoder, self.transformer = text_encoder, transformer

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor:
        """Velocity for each row.

        Args:
            ids, mask: int64 of shape (S, L), caption tokens of S scenes; row r of ``latents`` belongs to scene r // K.
            latents: float32 of shape (S * K, 4, 16, 16), noisy.
            sigma: float32 of shape (S * K,) in [0, 1].
        """
        draws = latents.shape[0] // ids.shape[0]
        text = self.text_encoder(ids, attention_mask=mask)[0].repeat_interleave(draws, 0)
        return self.transformer(
            latents,
            encoder_hidden_states=text,
            encoder_attention_mask=mask.repeat_interleave(draws, 0),
            timestep=sigma * TRAIN_TIMESTEPS,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


class SceneStream:
    """Endless training batches: caption tokens and clean scaled latents of fresh scenes."""

    def __init__(self, vae: AutoencoderKL, tokenizer: T5Tokenizer, rng: random.Random) -> None:
        self.vae, self.tokenizer, self.rng = vae, tokenizer, rng

    @torch.no_grad()
    def next(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids and mask of shape (count, 16), and float32 latents of shape (count, 4, 16, 16)."""
        scenes = [sample_scene(self.rng) for _ in range(count)]
        texts = ["" if self.rng.random() < _CAPTION_DROPOUT else caption(scene) for scene in scenes]
        # One fixed length, just above the longest caption, so that compiled blocks see one shape only.
        tokens = self.tokenizer(texts, padding="max_length", max_length=_CAPTION_TOKENS, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            latents = self.vae.encode(draw_batch(scenes)).latent_dist.mode()
        return tokens.input_ids, tokens.attention_mask, latents.float() * self.vae.config.scaling_factor


def sample_sigma(count: int) -> torch.Tensor:
    """Noise levels in (0, 1), shape (count,): logit-normal, with a uniform share so that the ends are seen too."""
    uniform = torch.rand(count)
    return torch.where(torch.rand(count) < _UNIFORM_SHARE, uniform, torch.randn(count).sigmoid())


def flow_loss(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Mean squared velocity error (scalar) with fresh noise; shapes as for :class:`TextToLatent`."""
    sigma, noise = sample_sigma(latents.shape[0]), torch.randn_like(latents)
    level = sigma.view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(ids, mask, (1 - level) * latents + level * noise, sigma)
    return (velocity.float() - (noise - latents)).pow(2).mean()


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
    """Everything that a checkpoint holds."""

    model: TextToLatent
    rng: random.Random
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
    ids, mask, latents = stream.next(_SCENES // _WORKERS)
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
    run.samples += _SCENES * _DRAWS
    return sum(losses) / len(losses)


def _loop(run: Run, streams: list[SceneStream], clock: training.Clock, run_dir: Path) -> None:
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
    training.save_checkpoint(run_dir / CHECKPOINT, run.state(clock.spent))


def train_transformer(
    minutes: float, seed: int, run_dir: Path, start_from: Path | None = None, compiled: bool = False
) -> None:
    """Train until ``minutes`` of wall time are spent, all runs together; continues a checkpoint in ``run_dir``.

    Args:
        minutes: total budget; the learning rate reaches zero at its end.
        seed: seed of scenes and noise.
        run_dir: holds the autoencoder (``vae/``), the checkpoint and the loss log.
        start_from: pipeline folder whose text encoder and transformer to start from instead of random weights.
        compiled: compile the transformer blocks, which needs a C++ compiler and takes a minute.
    """
    _use_plain_attention()
    rng = training.seed_everything(seed)
    tokenizer, vae = build_tokenizer(), AutoencoderKL.from_pretrained(run_dir / "vae")
    run = Run(_initial_model(len(tokenizer), start_from), rng)
    state = training.load_checkpoint(run_dir / CHECKPOINT)
    if state is not None:
        run.restore(state)
    if compiled:
        for block in run.model.transformer.transformer_blocks:
            block.compile(dynamic=False, options={"cpp.threads": 1})
    streams = [SceneStream(vae, build_tokenizer(), random.Random(rng.random())) for _ in range(_WORKERS)]
    _loop(run, streams, training.Clock(minutes * 60, run.spent), run_dir)


def _use_plain_attention() -> None:
    # On CPU the fused kernels' bfloat16 backward takes several times as long as plain matrix products at this size.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def _initial_model(vocab_size: int, start_from: Path | None) -> TextToLatent:
    if start_from is None:
        return TextToLatent(build_text_encoder(vocab_size), build_transformer()).train()
    text_encoder = T5EncoderModel.from_pretrained(start_from / "text_encoder", dtype=torch.float32)
    transformer = PixArtTransformer2DModel.from_pretrained(start_from / "transformer", torch_dtype=torch.float32)
    return TextToLatent(text_encoder, transformer).train()
