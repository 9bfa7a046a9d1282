"""The home: what was learnt of a model is found again by that model alone, whole, whoever writes or dies beside it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.errors import UsageError
from fastcache_xdit.home import Home
from fastcache_xdit.host.find import host_of
from fastcache_xdit.host.identity import identity
from tests.approx.test_calibration import made
from tests.learnt import learnt
from tests.tiny import pipeline

ROOT = Path(__file__).parents[1]
NOBODY = 65534
ROUNDS = 30
WRITER = """
import sys
from pathlib import Path
from fastcache_xdit.home import Home
from tests.learnt import learnt
folder, norm, rounds = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for number in range(rounds):
    assert Home(folder).keep(learnt(norm, requests=number, padding=str(number % 10) * 300_000))
"""
DYING = """
import os, signal, sys
from pathlib import Path
from fastcache_xdit.home import Home
from tests.learnt import learnt
folder, call, when = sys.argv[1:]
original = getattr(os, call)
def deadly(*args, **kwargs):
    if when == "after":
        original(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, call, deadly)
Home(Path(folder)).keep(learnt(requests=2))
"""


def environment():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def there(home):
    return sorted(path.name for path in home.calibrations.iterdir() if path.name != ".lock")


def age(path, seconds):
    os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASTCACHE_HOME")
    usual = Home().calibrations
    assert usual.is_relative_to(tmp_path) and "fastcache_xdit" in usual.parts
    monkeypatch.setenv("FASTCACHE_HOME", "")
    assert Home().calibrations == usual
    monkeypatch.setenv("FASTCACHE_HOME", "~/mine")
    assert Home().calibrations == tmp_path / "mine" / "calibrations"
    assert Home(tmp_path / "other").calibrations == tmp_path / "other" / "calibrations"


def test_a_model_finds_what_was_learnt_of_it(home):
    pipe = pipeline("pixart")
    known = identity(host_of(pipe))
    assert home.find(known) is None
    path = home.keep(replace(made(), identity=known))
    assert path.name.startswith("pixart-")
    again = home.find(identity(host_of(pipeline("pixart"))))
    assert again.stamp == Calibration.load(path).stamp == made().stamp
    for other in (pipeline("pixart", seed=3), pipeline("flux"), pipeline("pixart", num_layers=4)):
        assert home.find(identity(host_of(other))) is None
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].ff.net[2].weight.mul_(1.5)
    assert home.find(identity(host_of(pipe))) is None, "a fine-tune"


def test_one_file_for_each_model(home):
    paths = [home.keep(learnt(norm)) for norm in (10.0, 20.0, 10.005, 20.01)]
    assert paths[0] == paths[2] and paths[1] == paths[3], "norms differ by rounding"
    paths.append(home.keep(learnt(adapters=["ink"])))
    paths.append(home.keep(replace(made(), identity=made().identity | {"weights": {}})))
    assert len(there(home)) == len(set(paths)) == 4, "other weights, other adapters, weights that are not known"
    assert home.find(learnt(20.0).identity).identity["weights"] == {"transformer_blocks.0": 20.01}
    assert home.find(learnt(adapters=["ink"]).identity).identity["adapters"] == ["ink"]


def test_the_newest_is_found_whatever_its_name(home):
    age(home.keep(learnt(requests=4)), 100)
    by_hand = home.calibrations / "by-hand.safetensors"
    learnt(prompts=24).save(by_hand)
    assert home.find(learnt().identity).facts == {"prompts": 24}
    age(by_hand, 200)
    assert home.find(learnt().identity).facts == {"requests": 4}


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _alter(path):
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _replace(path):
    path.write_bytes(b"PK\x03\x04 not a calibration")


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_truncate, _alter, _replace, _empty])
def test_what_is_broken_is_skipped_with_one_warning(home, caplog, spoil):
    age(home.keep(learnt(requests=4)), 100)
    broken = home.calibrations / "broken.safetensors"
    learnt(requests=9).save(broken)
    spoil(broken)
    for _ in range(3):
        assert home.find(learnt().identity).facts == {"requests": 4}
    (warning,) = caplog.messages
    assert str(broken) in warning and "calibrations remove broken" in warning
    assert home.keep(learnt(requests=5)) and home.find(learnt().identity).facts == {"requests": 5}
    home.remove("broken")
    assert len(there(home)) == 1


def test_a_broken_file_is_replaced_by_what_is_learnt_next(home):
    path = home.keep(learnt(requests=4))
    _truncate(path)
    assert home.find(learnt().identity) is None
    assert home.keep(learnt(requests=5)) == path
    assert home.find(learnt().identity).facts == {"requests": 5}


def test_what_is_listed(home):
    assert home.listed() == [] and home.names() == []
    age(home.keep(learnt(requests=4, when="2026-11-27T14:03:22")), 100)
    home.keep(learnt(20.0))
    newer, older = home.listed()
    assert (older.facts["requests"], older.when, older.steps) == (4, "2026-11-27T14:03:22", 5)
    assert older.size == older.path.stat().st_size and older.identity == learnt().identity
    assert newer.name == f"{older.name}-2" and newer.when[:2] == "20" and "T" in newer.when


def test_names(home):
    with pytest.raises(UsageError, match="there is no calibration 'x'; .*calibrations has none"):
        home.path_of("x")
    first, second, third = (home.keep(each) for each in (learnt(), learnt(20.0), learnt(adapters=["ink"])))
    assert home.path_of(first.stem) == first, "though another begins so"
    assert home.path_of(first.name) == first and home.path_of(third.stem[:-1]) == third
    with pytest.raises(UsageError, match=f"3 calibrations begin with 'this'; give one of .*{second.stem}"):
        home.path_of("this")
    for unknown in ("", "../calibrations", "*"):
        with pytest.raises(UsageError, match=f"there are .*{third.stem}"):
            home.path_of(unknown)


def test_export_is_a_calibration_file_of_its_own(home, tmp_path):
    path = home.keep(learnt(requests=4))
    file = home.export("this", tmp_path / "new" / "mine.safetensors")
    home.remove("this")
    assert there(home) == [] and Calibration.load(file).facts == {"requests": 4}
    file.replace(path)
    _alter(path)
    with pytest.raises(UsageError, match="altered"):
        home.export("this", file)
    assert not file.exists()


@pytest.fixture
def read_only(tmp_path):
    """A folder that this process cannot write to, with one calibration in it."""
    home, root = Home(tmp_path / "home"), os.geteuid() == 0
    home.keep(learnt(requests=4))
    home.calibrations.chmod(0o555)
    closed = [parent for parent in home.calibrations.parents if not parent.stat().st_mode & 0o001]
    for parent in closed if root else ():  # temporary folders are the user's alone
        parent.chmod(parent.stat().st_mode | 0o055)
    if root:
        os.seteuid(NOBODY)
    yield home
    if root:
        os.seteuid(0)
    home.calibrations.chmod(0o755)


def test_a_folder_that_cannot_be_written_to_is_said_once(read_only, caplog):
    for _ in range(3):
        assert read_only.keep(learnt(requests=5)) is None
    (warning,) = caplog.messages
    assert str(read_only.calibrations) in warning and "FASTCACHE_HOME" in warning
    assert read_only.find(learnt().identity).facts == {"requests": 4}
    with pytest.raises(UsageError, match="cannot remove .*Permission denied"):
        read_only.remove("this")


def test_a_folder_that_cannot_be_looked_into_is_no_crash(read_only):
    os.seteuid(0) if os.getuid() == 0 else None
    read_only.calibrations.parent.chmod(0o700 if os.getuid() == 0 else 0o000)
    os.seteuid(NOBODY) if os.getuid() == 0 else None
    try:
        assert read_only.find(learnt().identity) is None
    finally:
        os.seteuid(0) if os.getuid() == 0 else None
        read_only.calibrations.parent.chmod(0o755)


def test_a_file_where_the_folder_would_be_is_no_crash(tmp_path, caplog):
    (tmp_path / "home").write_text("")
    home = Home(tmp_path / "home")
    assert home.keep(learnt()) is None and home.find(learnt().identity) is None and home.listed() == []
    assert len(caplog.messages) == 1


def _writers(folder, *norms):
    """Processes that keep calibrations, started together."""
    words = [[sys.executable, "-c", WRITER, str(folder), str(norm), str(ROUNDS)] for norm in norms]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(each, env=environment(), cwd=ROOT, **pipes) for each in words]
    for process in started:
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    return started


def test_processes_keep_at_once_and_every_read_sees_a_whole_file(home, tmp_path, caplog):
    writers, reads = _writers(tmp_path, 10.0, 10.001, 20.0), 0
    while any(process.poll() is None for process in writers):
        if found := home.find(learnt().identity):
            assert found.facts["padding"] == str(found.facts["requests"] % 10) * 300_000
            reads += 1
        assert len(home.listed()) <= 2
    assert [(process.returncode, process.communicate()[1]) for process in writers] == [(0, "")] * 3
    assert reads > 1 and not caplog.messages
    assert len(there(home)) == 2, "one for each model, and no leftovers"
    assert all(kept.facts["requests"] == ROUNDS - 1 for kept in home.listed())


@pytest.mark.parametrize("call, when", [("fsync", "before"), ("replace", "before"), ("replace", "after")])
def test_killed_at_any_moment_of_a_write_the_file_is_whole(home, tmp_path, caplog, call, when):
    path = home.keep(learnt(requests=1))
    words = [sys.executable, "-c", DYING, str(tmp_path), call, when]
    died = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (len(there(home)) == 1) == (when == "after"), "the half-written file is there"
    assert home.find(learnt().identity).facts == {"requests": 2 if when == "after" else 1}
    assert [kept.path for kept in home.listed()] == [path] and not caplog.messages
    home.keep(learnt(requests=3))
    assert there(home) == [path.name], "its lock is free, and what it left is gone"


def test_a_disk_that_is_full_leaves_the_old_file(home, monkeypatch, caplog):
    path = home.keep(learnt(requests=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert home.keep(learnt(requests=2)) is None
    assert "No space left on device" in caplog.text and there(home) == [path.name]
    assert home.find(learnt().identity).facts == {"requests": 1}
