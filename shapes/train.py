"""Train, export and evaluate a model: `python -m shapes.train PART`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .evaluate import evaluate
from .export import export, plot_loss
from .loading import MODELS, SHIPPED
from .recipes import RECIPES
from .transformer_training import TransformerOptions, train_transformer
from .vae_training import train_decoder, train_vae


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("vae", "decoder", "transformer", "export", "evaluate"))
    parser.add_argument("--model", choices=tuple(RECIPES), default=SHIPPED[0], help="which one; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=8.0, help="wall-time budget, over all resumed runs")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, noise and evaluation prompts")
    parser.add_argument("--run-dir", type=Path, help="checkpoints and logs; default: runs/MODEL")
    parser.add_argument("--scenes", type=int, default=24, help="scenes per step of the transformer, each used 4 times")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="threads that share a step's scenes")
    parser.add_argument("--from-shipped", action="store_true", help="start the transformer from the shipped weights")
    parser.add_argument("--compile", action="store_true", help="compile the transformer blocks (needs a C++ compiler)")
    parser.add_argument("--model-dir", type=Path, help="pipeline folder; default: shapes/models/MODEL")
    parser.add_argument("--count", type=int, default=64, help="images to evaluate")
    parser.add_argument("--grid", type=Path, help="PNG for the evaluated images")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part of a model's making from the command line."""
    options = _parser().parse_args(arguments)
    recipe, run_dir = RECIPES[options.model], options.run_dir or Path("runs") / options.model
    model_dir = options.model_dir or MODELS / options.model
    # A terminated training must unwind: it saves its checkpoint on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if options.part == "vae":
        train_vae(recipe.vae, options.minutes, options.seed, run_dir)
    elif options.part == "decoder":
        train_decoder(recipe.vae, options.minutes, options.seed, run_dir)
    elif options.part == "transformer":
        start_from = model_dir if options.from_shipped else None
        how = TransformerOptions(
            options.minutes, options.seed, options.scenes, options.workers, options.compile, start_from
        )
        train_transformer(recipe, how, run_dir)
    elif options.part == "export":
        export(recipe, run_dir, model_dir)
        plot_loss(run_dir, model_dir / "loss.png")
    else:
        print(json.dumps(evaluate(recipe, model_dir, options.count, options.seed, options.grid), indent=2))


if __name__ == "__main__":
    main()
