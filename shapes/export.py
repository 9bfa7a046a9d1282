"""Write the averaged weights of a training run as a pipeline folder in fp16."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

from . import training
from .recipe import ModelRecipe
from .transformer_training import CHECKPOINT


def _averaged(recipe: ModelRecipe, run_dir: Path) -> torch.nn.Module:
    state = training.load_checkpoint(run_dir / CHECKPOINT)
    if state is None:
        raise FileNotFoundError(f"no checkpoint {run_dir / CHECKPOINT}; train the transformer first")
    model = recipe.parts(None).eval()
    with torch.no_grad():
        for live, average in zip(model.parameters(), state["average"], strict=True):
            live.copy_(average)
    return model


def _tidy_configs(folder: Path) -> None:
    """Make a plain load give float32, and drop the run's folder from every config."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        if path.parent.name.startswith("text_encoder"):
            # Weights are stored in half precision, but CPU kernels want float32: transformers loads the declared dtype.
            config["dtype"] = "float32"
        path.write_text(json.dumps(config, indent=2) + "\n")


def export(recipe: ModelRecipe, run_dir: Path, folder: Path) -> None:
    """Save all parts of the pipeline with weights in fp16, and the arguments of its call.

    Raises:
        FileNotFoundError: `run_dir` holds no checkpoint of the transformer.
    """
    pipeline = recipe.pipeline(_averaged(recipe, run_dir), run_dir / "vae").to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    _tidy_configs(folder)
    (folder / "generation.json").write_text(json.dumps(recipe.defaults, indent=2) + "\n")


def plot_loss(run_dir: Path, path: Path) -> None:
    """Save the transformer's loss curve as a small PNG."""
    lines = [json.loads(line) for line in (run_dir / "transformer-loss.jsonl").read_text().splitlines()]
    # A run that resumed from an older checkpoint logged some sample counts twice; the later line counts.
    losses = dict(sorted({line["samples"]: line["loss"] for line in lines}.items()))
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot([samples / 1000 for samples in losses], list(losses.values()), linewidth=0.8)
    axes.set(xlabel="samples (thousands)", ylabel="mean squared velocity error", yscale="log")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=90)
