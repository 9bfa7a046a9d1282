"""Those of xDiT's options that nearly every command line needs, for `--help`; xDiT's own parser takes them."""

from __future__ import annotations

from typing import Any

from fastcache_xdit.host.xdit.flags import METHOD
from fastcache_xdit.shipped import SHIPPED

# By flag: what stands for its value, and what it is for.
MAKING = {
    "--model": ("NAME", f"a folder, an id of the Hugging Face hub, or in a clone {', '.join(SHIPPED)}"),
    "--prompt": ("TEXT ...", "what to make; several texts make several"),
    "--negative_prompt": ("TEXT", "what guidance leads away from"),
    "--num_inference_steps": ("NUMBER", "denoising steps"),
    "--guidance_scale": ("NUMBER", "how closely the prompt is followed"),
    "--height": ("PIXELS", ""),
    "--width": ("PIXELS", ""),
    "--num_frames": ("NUMBER", "of a video"),
    "--seed": ("NUMBER", "of the first prompt's noise; each further one takes the next"),
    "--cache": (METHOD, "turn the cache on"),
    "--cache_config": ("CONFIG", "its options: a preset's name, a YAML or JSON file, or a JSON object"),
}
LAYOUT = {
    "--ulysses_degree": (
        "NUMBER",
        "ranks that share a picture; all degrees multiply to the number of ranks",
    ),
    "--ring_degree": ("NUMBER", "the same, by ring attention"),
    "--pipefusion_parallel_degree": ("NUMBER", "stages that hold a part of the model each"),
    "--tensor_parallel_degree": ("NUMBER", "ranks that share each weight"),
    "--data_parallel_degree": ("NUMBER", "copies of the model that share the prompts"),
    "--use_cfg_parallel": (None, "both branches of guidance at once, on twice as many ranks"),
}


def add_usual(group: Any, makes: bool) -> None:
    """Add these options to a parser that shows them.

    Args:
        group: of the parser.
        makes: whether the command takes those of a picture, or those of the layout alone.
    """
    for flag, (value, about) in ((MAKING if makes else {}) | LAYOUT).items():
        shown: dict[str, Any] = {"metavar": value} if value else {"action": "store_true"}
        group.add_argument(flag, help=about, **shown)
