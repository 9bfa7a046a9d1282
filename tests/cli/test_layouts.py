"""`run` and `generate` on checkpoints of FLUX.1, SD3 and Wan: torchrun, sequence ranks and stages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.parallel.launch import end, environment

LIMIT = 480  # seconds for one launch
ULYSSES, STAGES = ["--ulysses_degree", "2"], ["--pipefusion_parallel_degree", "2"]
LAYOUTS = {"u2": ULYSSES, "pp2": STAGES, "u2 pp2": [*ULYSSES, *STAGES]}
REQUEST = ["--prompt", "a red circle", "--height", "128", "--width", "128", "--max_sequence_length", "16"]
REQUEST += ["--num_frames", "5"]  # of the video alone
REQUEST += ["--num_inference_steps", "8", "--cache", "fastcache", "--cache_config", '{"learn": 0}', "--seed", "1"]
CASES = [  # each command with each layout, and with each model
    ("run", "flux", "u2"),
    ("run", "flux", "u2 pp2"),
    ("run", "sd3", "pp2"),
    ("generate", "flux", "pp2"),
    ("generate", "sd3", "u2 pp2"),
    ("generate", "wan", "u2"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    return {family: tiny.checkpoint(family, tmp_path_factory.mktemp(family)) for family in ("flux", "sd3", "wan")}


def torchrun(ranks: int, words: list[str], folder: Path) -> tuple[int | None, str]:
    """Exit code, None where the time ran out, and what was written to the terminal."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    log = folder / "terminal.txt"
    with log.open("w") as terminal:
        streams = {"stdout": terminal, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen([*command, "-m", "fastcache_xdit", *words], cwd=folder, env=environment(), **streams)
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    return code, log.read_text()


def test_a_compiled_transformer_is_cached_too(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    words = ["run", "--model", str(checkpoints["flux"]), *REQUEST, *ULYSSES, "--use_torch_compile"]
    code, terminal = torchrun(2, [*words, "--output", str(tmp_path / "out")], tmp_path)
    assert code == 0, terminal[-4000:]
    assert len(list((tmp_path / "out").rglob("*.png"))) == 1 and "nothing was skipped" not in terminal
    assert list((tmp_path / "compiled").rglob("*.so")), "kernels were compiled"


@pytest.mark.parametrize("command, family, layout", CASES)
def test_images_are_written_and_blocks_are_skipped(checkpoints, tmp_path, command, family, layout):
    output = ["--output", str(tmp_path / "out")]
    words = [command, "--model", str(checkpoints[family]), *REQUEST, *LAYOUTS[layout], *output]
    code, terminal = torchrun(2 ** len(layout.split()), words, tmp_path)
    assert code == 0, terminal[-4000:]
    ending = ".mp4" if family == "wan" else ".png"
    assert [path.suffix for path in (tmp_path / "out").rglob(f"*{ending}")] == [ending], terminal[-2000:]
    assert "nothing was skipped" not in terminal
    if command == "run":
        assert "fastcache: computed" in terminal and "% of the compute, estimated" in terminal
        written = ", ".join(sorted(path.name for path in (tmp_path / "out").iterdir()))
        assert f"fastcache: {written} -> {tmp_path / 'out'}" in terminal and "timings.json" in written
    assert terminal.count("fastcache: on for") == 1, "said once, whatever the number of ranks"
