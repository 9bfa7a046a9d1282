"""Results made by hand."""

from fastcache_xdit.bench.peers.study import Study

CONDITIONS = {
    "model": "shapes-pixart",
    "steps": 4,
    "layout": "1",
    "ranks": 1,
    "dtype": "float32",
    "batch_size": 8,
    "seed": 42,
    "count": 4,
    "prompts": "0123",
    "call": {"num_inference_steps": 4},
    "versions": {"torch": "2"},
    "peers": ["FastCache, tuned", "other"],
    "sweep": "whole",
    "machine": "a machine",
    "date": "2026-01-01 00:00 UTC",
    "command": "python -m fastcache_xdit bench peers",
}
NO_SCORES = {"latent_error": None, "prompt_accuracy": None, "classifier_frechet": None, "classifier_t_frechet": None}


def row(peer, setting, compute, psnr, **more):
    """A setting that ran."""
    return {
        "peer": peer,
        "setting": setting,
        "status": "ran",
        "error": "",
        "compute": compute,
        "transformer": compute,
        "steps": [1.0, 0.0, 1.0, 0.0],
        "speedup": {"median": 2.0, "least": 1.5, "most": 2.5, "repetitions": 3},
        "restored": True,
        "scores": {"psnr_db": psnr, "psnr_db_p5": psnr, "psnr_db_min": psnr, "ssim": 0.9, **NO_SCORES},
        "ours": peer.startswith("FastCache"),
        **more,
    }


def study(folder, *rows, **conditions):
    """A study of these rows."""
    return Study(folder, {**CONDITIONS, **conditions}, row("uncached", "", 1.0, 100.0), rows)
