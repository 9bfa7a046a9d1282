"""What a doctor says of a machine: each thing that can be wrong is told with what to do."""

import importlib.metadata

import pytest
import torch

from fastcache_xdit.doctor import machine
from fastcache_xdit.doctor.finding import Finding, problem, tried


def test_a_finding_is_fine_a_hint_or_a_problem():
    assert Finding("a", "b").state == "fine"
    assert Finding("a", "b", "do c").state == "hint"
    assert problem("a", "b", "do c").to_dict()["state"] == "problem"


def test_what_stops_a_look_is_the_finding():
    def broken():
        raise OSError("libcudart.so:\n  no such file")

    assert tried("attention", broken, "reinstall") == problem(
        "attention", "OSError: libcudart.so: no such file", "reinstall"
    )


def test_this_machine_passes():
    assert [each.topic for each in machine.examine() if each.problem] == []


@pytest.fixture
def installed(monkeypatch):
    """Change what seems to be installed: a version, or None for nothing."""
    real = importlib.metadata.version

    def pretend(**changed):
        def version(name):
            found = changed[name] if name in changed else real(name)
            if found is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(machine, "version", version)

    return pretend


def test_packages_out_of_range_are_told_with_the_range(installed):
    installed(xfuser="0.8.1", scipy=None)
    found = machine.packages()
    assert found.problem and found.found == "xfuser 0.8.1, scipy is missing"
    assert found.advice == "pip install 'xfuser<0.8,>=0.7' 'scipy>=1.11'"


def test_a_project_that_is_not_installed_is_told(monkeypatch):
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "requires", requires)
    assert machine.packages().problem and "pip install ." in machine.packages().advice


def test_a_device_that_torch_cannot_use_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.Path, "exists", lambda path: str(path) == "/dev/nvidiactl")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "install a CUDA build" in machine.devices().advice
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver" in machine.devices().advice


def test_a_missing_backend_is_told(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_backend_available", lambda backend: False)
    assert machine.messages().found == "torch was built without gloo"


def test_a_message_leaves_no_process_group():
    assert machine.messages() == Finding("messages", "gloo works, tried with 1 rank")
    assert not torch.distributed.is_initialized()


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(machine.cpu, "has_accelerator", lambda: True)


def test_on_gpus_flash_attn_is_a_hint_until_it_is_broken(gpu, installed, monkeypatch):
    installed(**{"flash-attn": None})
    found = machine.attention()
    assert found.state == "hint" and "pip install --no-build-isolation" in found.advice
    installed(**{"flash-attn": "2.8.3"})
    found = machine.attention()  # its files are not there
    assert found.problem and "--force-reinstall" in found.advice


def test_on_gpus_triton_needs_a_compiler(gpu, monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert "gcc" in machine.kernels().advice
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert not machine.kernels().advice


def test_a_missing_triton_is_told(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(machine.importlib, "import_module", import_module)
    assert machine.kernels().problem and machine.kernels().advice.startswith("pip install triton")
