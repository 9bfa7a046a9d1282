"""The launchers: valid shell, and what --dry-run prints is what they send, word for word, and what the tools take."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from fastcache_xdit.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(ROOT.glob("scripts/*.sh"))
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
RECORDER = '#!/usr/bin/env bash\nprintf "%s\\0" "${0##*/}" "$@" > "$RECORD"\n[ -t 0 ] || cat >> "$RECORD"\n'


def launch(name, *words, path=None, record=""):
    """One launcher, run from another folder; `path` goes before the machine's own tools."""
    environment = {**os.environ, "PATH": f"{path or ''}:{os.environ['PATH']}", "RECORD": str(record)}
    command = ["bash", str(ROOT / "scripts" / f"{name}.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, stdin=subprocess.DEVNULL)


def printed(name, *words):
    done = launch(name, "--dry-run", *words)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def tools(tmp_path):
    """A folder of stand-ins for the tools; each writes its words, and what it reads, to the file $RECORD."""
    for tool in TOOLS.values():
        stand_in = tmp_path / tool
        stand_in.write_text(RECORDER)
        stand_in.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    command = ["shellcheck", "--external-sources", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=_with_own_tools())
    assert done.returncode == 0, done.stdout


def _with_own_tools():
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("name", TOOLS)
def test_a_dry_run_prints_what_would_be_sent(name, job, tools):
    words = [*OPTIONS[name], *JOBS[job]]
    text, record = printed(name, *words), tools / "record"
    assert not record.exists(), "a dry run called its tool"
    assert launch(name, *words, path=tools, record=record).returncode == 0
    sent = record.read_bytes()
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "RECORD": str(record)}
    subprocess.run(["bash", "-c", text], check=True, env=environment, stdin=subprocess.DEVNULL)
    assert record.read_bytes() == sent
    assert sent.startswith(TOOLS[name].encode())


def torchrun_words(line):
    """What torchrun itself understands of a printed line: (its options, words for fastcache_xdit)."""
    words = shlex.split(line)
    parsed = get_args_parser().parse_args(words[words.index("torchrun") + 1 :])
    assert parsed.module and parsed.training_script == "fastcache_xdit"
    return parsed, parsed.training_script_args


@pytest.mark.parametrize("job", JOBS)
def test_torchrun_understands(job):
    alone, words = torchrun_words(_on_one_line(printed("torchrun", "--ranks", "4", *_plain(JOBS[job]))))
    assert alone.standalone and alone.nproc_per_node == "4" and words == _plain(JOBS[job])
    nodes, _ = torchrun_words(_on_one_line(printed("torchrun", *OPTIONS["torchrun"], *_plain(JOBS[job]))))
    assert (nodes.nnodes, nodes.rdzv_backend, nodes.rdzv_endpoint, nodes.rdzv_id) == (
        "2",
        "c10d",
        "node0:29500",
        "seven",
    )


def _plain(words):
    return [word.replace("\n", " ") for word in words]


def _on_one_line(text):
    assert text.count("\n") == 1
    return text


def test_two_nodes_meet():
    """Both on this machine; `doctor` sends a message among all ranks that were started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["bash", "scripts/torchrun.sh", "--nodes", "2", "--rendezvous", f"localhost:{port}", "doctor", "--json"]
    nodes = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "gloo works, tried with 2 ranks" in "".join(told) and sum(map(bool, told)) == 1, "one rank speaks"


def document(text):
    """What a printed line gives its tool on standard input."""
    return text.split("\n", 1)[1].rsplit("END\n", 1)[0]


def test_slurm_gets_a_script_that_starts_every_node():
    script = document(printed("slurm", *OPTIONS["slurm"], *JOBS["batch"]))
    done = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True, env=_with_own_tools())
    assert done.returncode == 0, done.stdout
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--gpus-per-node=4", "--partition=fast", "--account=us", "--time=08:00:00"} <= set(lines)
    assert {"--requeue", "--signal=TERM@120"} <= set(lines), "a preempted batch goes on"
    assert "--requeue" not in document(printed("slurm", *JOBS["run"])), "other commands begin again"


def test_slurm_nodes_meet(tools):
    """The submitted script, run with stand-ins for SLURM's tools: every word arrives at torchrun."""
    (tools / "scontrol").write_text('#!/usr/bin/env bash\nprintf "node7\\nnode8\\n"\n')
    (tools / "srun").write_text('#!/usr/bin/env bash\nshift 2\nexec "$@"\n')
    for name in ("scontrol", "srun"):
        (tools / name).chmod(0o755)
    script, record = document(printed("slurm", *OPTIONS["slurm"], *JOBS["generate"])), tools / "record"
    slurm = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[7-8]", "RECORD": str(record)}
    environment = {**os.environ, **slurm, "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", script], check=True, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
    words = record.read_text().split("\0")[:-1]
    assert words[words.index("--rdzv_endpoint") + 1] == "node7:24567"
    assert words[words.index("--rdzv_id") + 1] == "1234567"
    assert words[words.index("fastcache_xdit") + 1 :] == JOBS["generate"]


@pytest.mark.parametrize("job", JOBS)
def test_kubernetes_gets_an_indexed_job(job):
    text = document(printed("kubernetes", *OPTIONS["kubernetes"], "--claim", "mine", *JOBS[job]))
    service, manifest = yaml.safe_load_all(text)
    spec = manifest["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"] == 2
    assert pod["subdomain"] == service["metadata"]["name"] == service["spec"]["selector"]["job-name"]
    assert container["resources"]["limits"] == {"cpu": 16, "nvidia.com/gpu": 4}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "mine"}
    words = [word.replace("$$(", "$(") for word in container["command"]]
    assert words[-len(JOBS[job]) :] == JOBS[job]
    start = torchrun_words(_on_one_line(printed("torchrun", *words[2 : -len(JOBS[job])], *_plain(JOBS[job]))))[0]
    assert start.rdzv_endpoint == "fastcache-0.fastcache:29500"


def test_ray_places_batches_and_gives_one_node_to_the_others():
    batch, run = (shlex.split(printed("ray", *_plain(JOBS[name]))) for name in ("batch", "run"))
    assert batch[batch.index("--") + 1 :] == ["python", "-m", "fastcache_xdit", *JOBS["batch"], "--ray", "auto"]
    assert run[run.index("--") - 2 :][:5] == ["--entrypoint-num-gpus", "1", "--", "bash", "scripts/torchrun.sh"]
    assert run[-len(JOBS["run"]) :] == _plain(JOBS["run"])


@pytest.mark.parametrize(
    "name, words, told",
    [
        ("torchrun", [], "no COMMAND; give one of: run generate batch"),
        ("torchrun", ["paint"], "unknown command 'paint'; commands: run generate"),
        ("torchrun", ["batch", "submit"], "only 'batch run' needs a launcher"),
        ("torchrun", ["--rank", "2", "run"], "unknown option --rank; options: "),
        ("torchrun", ["--ranks"], "--ranks needs a value"),
        ("torchrun", ["--ranks", "two", "run"], "--ranks two is not possible; give 1 or more"),
        ("torchrun", ["--nodes", "2", "run"], "--nodes 2 needs --rendezvous HOST:PORT"),
        ("slurm", ["--gpus", "all", "run"], "--gpus all is not possible; give 0 or more"),
        ("slurm", ["--cores", "0", "run"], "--cores 0 is not possible"),
        ("kubernetes", ["run"], "no image; give --image IMAGE"),
        ("kubernetes", ["--image", "x", "--job", "My Job", "run"], "--job My Job is no Kubernetes name"),
        ("ray", ["--ranks", "2", "batch", "run"], "give --replicas and degrees behind it"),
        ("ray", ["--address", "head:8265", "run"], "give http://HOST:8265"),
    ],
)
def test_mistakes_are_told(name, words, told):
    done = launch(name, "--dry-run", *words)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"{name}.sh: error: ") and told in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [name for name, tool in TOOLS.items() if not shutil.which(tool)])
def test_a_missing_tool_is_told(name):
    done = launch(name, *OPTIONS[name], *JOBS["run"])
    assert done.returncode == 2 and f"{TOOLS[name]} is not on this machine" in done.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_their_help_names_every_option(name):
    done = launch(name, "--help")
    declared = launch(name, "--unknown").stderr.split("options: ")[1].split(", then")[0].split()
    assert done.returncode == 0 and all(flag in done.stdout for flag in declared if flag != "--help")


def test_a_dry_run_asked_for_late_sends_nothing(tools):
    done = launch("slurm", *JOBS["run"], "--dry-run", path=tools, record=tools / "record")
    assert done.returncode == 0 and "--dry-run" not in done.stdout and not (tools / "record").exists()


def test_they_know_the_commands():
    listed = launch("torchrun").stderr.split("give one of: ")[1].split(" (")[0].split()
    assert set(listed) - set(COMMANDS) <= {"batch"}
