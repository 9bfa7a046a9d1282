"""Runs the launchers under scripts/, with stand-ins for the tools that they call."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from torch.distributed.run import get_args_parser

ROOT = Path(__file__).parents[1]
TOOLS = {"torchrun": "torchrun", "slurm": "sbatch", "kubernetes": "kubectl", "ray": "ray"}
PROMPT = "it's a \"red\" circle,\n$(HOME) $HOME \\ and a 'blue' one"
JOBS = {
    "run": ["run", "--model", "FLUX.1-dev", "--prompt", PROMPT],
    "generate": ["generate", "--config", "configs/quickstart.yaml", "--prompt", PROMPT],
    "batch": ["batch", "run", "results/a job"],
}
OPTIONS = {
    "torchrun": ["--nodes", "2", "--ranks", "4", "--rendezvous", "node0:29500", "--job", "seven"],
    "slurm": ["--nodes", "2", "--ranks", "4", "--partition", "fast", "--account", "us", "--time", "08:00:00"],
    "kubernetes": ["--image", "registry.example.org/fastcache-xdit:cuda", "--nodes", "2", "--ranks", "4"],
    "ray": ["--address", "http://head:8265"],
}

# A stand-in writes its words, and what it reads, to the file $RECORD.
RECORDER = '#!/usr/bin/env bash\nprintf "%s\\0" "${0##*/}" "$@" > "$RECORD"\n[ -t 0 ] || cat >> "$RECORD"\n'
OWN_TOOLS = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def launch(name, *words, path=None, record=""):
    """One launcher, run from another folder; `path` goes before the machine's own tools."""
    first = f"{path}:" if path else ""
    environment = {**os.environ, "PATH": f"{first}{os.environ['PATH']}", "RECORD": str(record)}
    command = ["bash", str(ROOT / "scripts" / f"{name}.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, stdin=subprocess.DEVNULL)


def printed(name, *words):
    """What a dry run prints."""
    done = launch(name, "--dry-run", *words)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def stand_ins(folder):
    """Fill a folder with stand-ins for the tools, and return it."""
    for tool in TOOLS.values():
        write_tool(folder / tool, RECORDER)
    return folder


def write_tool(path, text):
    """A program of this text."""
    path.write_text(text)
    path.chmod(0o755)


def document(text):
    """What a printed line gives its tool on standard input."""
    return text.split("\n", 1)[1].rsplit("END\n", 1)[0]


def torchrun_words(line):
    """What torchrun itself understands of a printed line: (its options, words for fastcache_xdit)."""
    assert line.count("\n") == 1
    words = shlex.split(line)
    parsed = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert parsed.module and parsed.training_script == "fastcache_xdit"
    return parsed, parsed.training_script_args


def plain(words):
    """Without line breaks, which bash and shlex quote differently."""
    return [word.replace("\n", " ") for word in words]
