"""Writes a training run's averaged weights as the shipped fp16 pipeline folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from matplotlib.figure import Figure

from . import training
from .components import MAX_TOKENS, build_pipeline, build_text_encoder, build_tokenizer, build_transformer
from .flow import TextToLatent
from .shapes import IMAGE_SIZE
from .transformer_training import CHECKPOINT

GUIDANCE_SCALE = 2.5
_DEFAULTS = {
    "guidance_scale": GUIDANCE_SCALE,
    "num_inference_steps": 20,
    "height": IMAGE_SIZE,
    "width": IMAGE_SIZE,
    "max_sequence_length": MAX_TOKENS,
    "use_resolution_binning": False,
    "clean_caption": False,
}


def _averaged_model(run_dir: Path) -> TextToLatent:
    state = training.load_checkpoint(run_dir / CHECKPOINT)
    if state is None:
        raise FileNotFoundError(f"no checkpoint {run_dir / CHECKPOINT}; train the transformer first")
    model = TextToLatent(build_text_encoder(len(build_tokenizer())), build_transformer()).eval()
    with torch.no_grad():
        for live, average in zip(model.parameters(), state["average"], strict=True):
            live.copy_(average)
    return model


def _declare_float32(folder: Path) -> None:
    # Weights are stored in half precision, but a plain load must give the precision that CPU kernels want.
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")


def export(run_dir: Path, folder: Path) -> None:
    """Save VAE, text encoder, tokenizer, transformer, scheduler and call defaults, all weights fp16.

    Raises:
        FileNotFoundError: ``run_dir`` holds no checkpoint of the transformer.
    """
    model = _averaged_model(run_dir)
    vae = AutoencoderKL.from_pretrained(run_dir / "vae")
    pipeline = build_pipeline(vae.half(), model.text_encoder.half(), model.transformer.half())
    pipeline.save_pretrained(folder, safe_serialization=True)
    _declare_float32(folder / "text_encoder")
    (folder / "generation.json").write_text(json.dumps(_DEFAULTS, indent=2) + "\n")


def plot_loss(run_dir: Path, path: Path) -> None:
    """Save the transformer's loss curve as a small PNG."""
    lines = [json.loads(line) for line in (run_dir / "transformer-loss.jsonl").read_text().splitlines()]
    # A run that went on from an older checkpoint logged some sample counts twice; the later line holds.
    losses = dict(sorted({line["samples"]: line["loss"] for line in lines}.items()))
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([samples / 1000 for samples in losses], list(losses.values()), linewidth=0.8)
    axes.set(xlabel="samples (thousands)", ylabel="flow-matching loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=90)
