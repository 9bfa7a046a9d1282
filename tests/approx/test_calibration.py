"""The calibration file: whole round trips, and refusal by name of everything else."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastcache_xdit.approx.calibration import FORMAT, REFITS, Calibration
from fastcache_xdit.approx.coherence import Coherence
from fastcache_xdit.approx.fitted import Refitted
from fastcache_xdit.approx.identity import IDENTITY, check_identity
from fastcache_xdit.approx.linear import Past, Reference
from fastcache_xdit.approx.maps import fit_maps
from fastcache_xdit.approx.moments import Halves
from fastcache_xdit.approx.tensor_file import TensorFile, read_tensors, write_tensors
from fastcache_xdit.errors import UsageError
from tests.approx.test_fit import SIGMAS, moments, trajectory
from tests.approx.test_maps import seen

IDENTITY_HERE = {name: f"this {name}" for name in IDENTITY} | {"weights": {"transformer_blocks.0": 10.0}}


def made():
    halves = Halves(moments(*trajectory(0)), moments(*trajectory(1)))
    by_segment, coherence = {"a..b": {"hidden_states": halves}}, (Coherence(3.0, 0.3, 0.1),)
    return Calibration(IDENTITY_HERE, {"steps": 5}, SIGMAS, by_segment, {"a..b": [0.5] * 5}, {"a..b": {}}, coherence)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "cal.safetensors"
    made().save(file)
    return file


def test_round_trip(path):
    found, original = Calibration.load(path), made()
    assert (found.identity, found.facts, found.sigmas) == (original.identity, original.facts, original.sigmas)
    assert (found.gains, found.spread, found.coherence) == (original.gains, original.spread, original.coherence)
    for mine, theirs in zip(
        found.moments["a..b"]["hidden_states"], original.moments["a..b"]["hidden_states"], strict=True
    ):
        torch.testing.assert_close(mine.gram, theirs.gram, rtol=1e-6, atol=1e-3)
    assert found.stamp == original.stamp


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such calibration file: .*none"):
        Calibration.load(tmp_path / "none")


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cal.safetensors is truncated or no safetensors file"):
        Calibration.load(path)


def test_something_else_is_refused(path):
    path.write_bytes(b"PK\x03\x04 not a calibration")
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        Calibration.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="is no 'fastcache calibration 1' file"):
        Calibration.load(path)


@pytest.mark.parametrize("what", ["tensor", "header"])
def test_a_tampered_file_is_refused(path, what):
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if what == "tensor":
        next(iter(tensors.values()))[0, 0] += 1
    else:
        metadata["header"] = json.dumps(json.loads(metadata["header"]) | {"gains": {"a..b": [9.0] * 5}})
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match="was altered after it was written"):
        Calibration.load(path)


@pytest.mark.parametrize("name", IDENTITY)
def test_another_model_is_refused_by_the_field_that_differs(name):
    other = {"transformer_blocks.0": 10.1} if name == "weights" else "other"
    with pytest.raises(ValueError, match=f"another model: {name} is .*other|another model: {name} is .*10.1"):
        check_identity(made().identity, IDENTITY_HERE | {name: other})


def test_rounding_of_weights_is_no_difference():
    check_identity(
        made().identity, IDENTITY_HERE | {"weights": {"transformer_blocks.0": 10.001, "transformer_blocks.4": 3.0}}
    )


@pytest.mark.parametrize("name", IDENTITY)
def test_adapters_may_be_allowed_and_nothing_else(name):
    running = IDENTITY_HERE | {name: {"transformer_blocks.0": 11.0} if name == "weights" else "other"}
    if name in ("weights", "adapters"):
        check_identity(made().identity, running, allow_adapters=True)
        with pytest.raises(ValueError, match="or set allow_adapters"):
            check_identity(made().identity, running)
    else:
        with pytest.raises(ValueError, match=f"another model: {name}"):
            check_identity(made().identity, running, allow_adapters=True)


def test_an_unknown_segment_is_named():
    with pytest.raises(ValueError, match="no segment c..d; it has a..b"):
        made().stand_in("c..d", "history", True)


def refined(path):
    """A refit of one skipped step, written beside the calibration at `path`."""
    name = Refitted("a..b", "delta", SIGMAS, "hidden_states", 3, (2,))
    made = replace(Calibration.load(path), refits={name: torch.tensor([[1.0, 0.5, -0.5, 0.0]])})
    made.save_refits(path.parent / "refits.safetensors", path)
    return path.parent / "refits.safetensors", name


def test_refits_come_with_the_calibration_that_they_refine(path):
    file, name = refined(path)
    found, base = Calibration.load(file), Calibration.load(path)
    assert (found.identity, found.gains, found.moments.keys()) == (base.identity, base.gains, base.moments.keys())
    assert list(found.refits) == [name] and found.stamp != base.stamp


def test_a_refit_takes_the_place_of_the_solution_at_its_step_only(path):
    file, _ = refined(path)
    entered = torch.full((1, 2, 1), 3.0)
    reference = Reference(2, torch.full((1, 2, 1), 1.0), torch.full((1, 2, 1), 10.0))
    stand_ins = [Calibration.load(each).stand_in("a..b", "delta", carry_errors=False) for each in (file, path)]
    found = {
        step: [each.residual("hidden_states", entered, Past(step, [reference], (2,))) for each in stand_ins]
        for step in (3, 4)
    }
    assert torch.equal(*found[4]) and not torch.equal(*found[3])
    torch.testing.assert_close(found[3][0], torch.full((1, 2, 1), 10 + 0.5 * 3 - 0.5 * 1))


def test_refits_of_another_calibration_are_refused(path):
    file, _ = refined(path)
    other = Calibration.load(path)
    other.gains = {"a..b": [0.25] * 5}
    other.save(path)
    with pytest.raises(ValueError, match="refits.safetensors refines another cal.safetensors"):
        Calibration.load(file)
    path.unlink()
    with pytest.raises(ValueError, match="no such calibration file: .*cal.safetensors"):
        Calibration.load(file)


def test_maps_are_kept_and_refused_where_there_are_none(path):
    maps = fit_maps(seen(0), seen(1))
    replace(Calibration.load(path), maps={"a..b": {"hidden_states": maps}}).save(path)
    kept = Calibration.load(path).maps["a..b"]["hidden_states"]
    torch.testing.assert_close(kept.matrix.float(), maps.matrix.float(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(kept.diagonal, maps.diagonal.float())
    with pytest.raises(ValueError, match="no affine maps of c..d; calibrate with --maps, or set affine_rank to 0"):
        Calibration.load(path).affine("c..d", 4)


def rewritten(path, **changes):
    """Write a calibration with a valid digest and other contents: of the header by name, or of all tensors."""
    kind, header, tensors = read_tensors(path, FORMAT)
    change = changes.pop("tensors", lambda tensor: tensor)
    header |= changes
    kept = {name: value for name, value in header.items() if value is not None}
    write_tensors(path, TensorFile(kind, kept, {name: change(tensor) for name, tensor in tensors.items()}))


WRONG = {
    "not finite": {"tensors": lambda tensor: tensor * float("nan")},
    "holds torch.int32": {"tensors": lambda tensor: tensor.int()},
    "holds what no calibration does": {"tensors": lambda tensor: tensor[:, :3].clone()},
    "lacks 'identity'": {"identity": None},
    "lacks 'gains'": {"gains": None},
    "lacks 'levels'": {"levels": None},
    "levels are 1 to 1000 .*'many'": {"levels": "many"},
    "levels are 1 to 1000 noise levels that fall": {"levels": SIGMAS[::-1]},
    "levels are 1 to 1000": {"levels": [1 - step / 1e6 for step in range(100_000)]},
    "gains of 'a..b'": {"gains": {"a..b": [float("nan")] * 5}},
    r"gains of '.x1b": {"gains": {"\x1b[2J": [0.5]}},
    "unexpected keyword": {"another": 1},
}


@pytest.mark.parametrize("problem", WRONG)
def test_a_valid_digest_does_not_make_a_calibration(path, problem):
    rewritten(path, **WRONG[problem])
    with pytest.raises(UsageError, match=f"cal.safetensors.*{problem}") as error:
        Calibration.load(path)
    assert str(error.value).isprintable()


def test_refits_that_name_themselves_or_each_other_are_refused(path):
    first, second = path.with_name("first.safetensors"), path.with_name("second.safetensors")
    for file, base in ((first, second), (second, first), (path, path)):
        write_tensors(file, TensorFile(REFITS, {"base": base.name, "base_stamp": "", "refits": []}, {}))
    for file in (first, path):
        with pytest.raises(UsageError, match="is no 'fastcache calibration 1' file but 'fastcache refits 1'"):
            Calibration.load(file)


def test_a_file_that_is_replaced_within_a_tick_of_the_clock_is_read_anew(path):
    first, when = Calibration.cached(path), path.stat().st_mtime_ns
    assert Calibration.cached(path) is first
    rewritten(path, facts={"steps": 6})
    os.utime(path, ns=(when, when))
    assert Calibration.cached(path).facts == {"steps": 6}
