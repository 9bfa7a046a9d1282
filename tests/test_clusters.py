"""What the launchers send to torchrun, SLURM, Kubernetes and Ray is what these understand."""

import os
import shlex
import subprocess

import pytest
import yaml

from tests.launchers import (
    JOBS,
    OPTIONS,
    OWN_TOOLS,
    ROOT,
    document,
    plain,
    printed,
    stand_ins,
    torchrun_words,
    write_tool,
)
from tests.parallel.launch import free_port


@pytest.mark.parametrize("job", JOBS)
def test_torchrun_understands(job):
    alone, words = torchrun_words(printed("torchrun", "--ranks", "4", *plain(JOBS[job])))
    assert alone.standalone and alone.nproc_per_node == "4" and words == plain(JOBS[job])
    nodes, _ = torchrun_words(printed("torchrun", *OPTIONS["torchrun"], *plain(JOBS[job])))
    assert (nodes.nnodes, nodes.rdzv_backend, nodes.rdzv_endpoint, nodes.rdzv_id) == (
        "2",
        "c10d",
        "node0:29500",
        "seven",
    )


def test_two_nodes_meet():
    """Both on this machine; `doctor` sends a message among all ranks that were started."""
    meeting = f"localhost:{free_port()}"
    words = ["bash", "scripts/torchrun.sh", "--nodes", "2", "--rendezvous", meeting, "doctor", "--json"]
    nodes = [subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [node.communicate()[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "gloo works, tried with 2 ranks" in "".join(told) and sum(map(bool, told)) == 1, "one rank speaks"


def test_slurm_gets_a_script_that_starts_every_node():
    script = document(printed("slurm", *OPTIONS["slurm"], *JOBS["batch"]))
    done = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True, env=OWN_TOOLS)
    assert done.returncode == 0, done.stdout
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=2", "--gpus-per-node=4", "--partition=fast", "--account=us", "--time=08:00:00"} <= set(lines)
    assert {"--requeue", "--signal=TERM@120"} <= set(lines), "a preempted batch goes on"
    assert "--requeue" not in document(printed("slurm", *JOBS["run"])), "other commands begin again"


def test_slurm_nodes_meet(tmp_path):
    """The submitted script, run with stand-ins for SLURM's tools: every word arrives at torchrun."""
    tools = stand_ins(tmp_path)
    write_tool(tools / "scontrol", '#!/usr/bin/env bash\nprintf "node7\\nnode8\\n"\n')
    write_tool(tools / "srun", '#!/usr/bin/env bash\nshift 2\nexec "$@"\n')
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
    start = torchrun_words(printed("torchrun", *words[2 : -len(JOBS[job])], *plain(JOBS[job])))[0]
    assert start.rdzv_endpoint == "fastcache-0.fastcache:29500"


def test_ray_places_batches_and_gives_one_node_to_the_others():
    batch, run = (shlex.split(printed("ray", *plain(JOBS[name]))) for name in ("batch", "run"))
    assert batch[batch.index("--") + 1 :] == ["python", "-m", "fastcache_xdit", *JOBS["batch"], "--ray", "auto"]
    assert run[run.index("--") - 2 :][:5] == ["--entrypoint-num-gpus", "1", "--", "bash", "scripts/torchrun.sh"]
    assert run[-len(JOBS["run"]) :] == plain(JOBS["run"])
