"""What a doctor says of a model, of the layouts that it can run in, and of its calibration files."""

import json
import shutil

import pytest

from fastcache_xdit.doctor import checkpoint
from fastcache_xdit.host.xdit.checkpoint import possible_layouts
from shapes.loading import calibration_path, model_path, shipped_calibrations
from tests import tiny

SHIPPED = model_path("shapes-pixart")


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return tiny.checkpoint("flux", tmp_path_factory.mktemp("checkpoint") / "flux")


def test_models_are_known_unknown_or_elsewhere(tmp_path, flux):
    assert checkpoint.model("mine", flux).state == "fine"
    index = {"_class_name": "MinePipeline", "transformer": ["mine", "MyTransformer"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    unknown = checkpoint.model("mine", tmp_path)
    assert unknown.state == "fine" and "was not tried" in unknown.found
    elsewhere = checkpoint.model("ORG/NAME", checkpoint.on_disk("ORG/NAME"))
    assert elsewhere.state == "hint" and elsewhere.advice.endswith("hf download ORG/NAME")


def test_a_folder_without_pipeline_is_one_problem(tmp_path):
    (found,) = checkpoint.examine("mine", tmp_path, 2, [calibration_path("shapes-pixart")])
    assert found.problem and "model_index.json is missing" in found.found and found.advice


@pytest.mark.parametrize("ranks, number", [(1, 1), (2, 6), (3, 5), (4, 20)])
def test_layouts_are_all_products(ranks, number):
    """Of 2 ranks, each of 6 kinds; of 4, the 15 pairs and the 5 kinds other than CFG alone."""
    found = possible_layouts(ranks, None)
    assert len(found) == number and len({each for each in found}) == number


def test_layouts_keep_to_the_model(flux):
    """4 heads, 8 blocks and no second branch."""
    assert {each.degrees["cfg_degree"] for each in possible_layouts(8, flux)} == {1}
    assert max(each.ulysses_degree * each.tensor_parallel_degree for each in possible_layouts(8, flux)) == 4
    assert max(each.pipefusion_parallel_degree for each in possible_layouts(16, flux)) == 8
    assert "16 ranks" in checkpoint.layouts(flux, 16).found and "pipefusion 8" in checkpoint.layouts(flux, 16).found


def test_shipped_calibrations_are_whole_and_of_their_model():
    (found,) = checkpoint.calibrated(shipped_calibrations("shapes-pixart"), SHIPPED)
    assert found.state == "fine" and "made for this model" in found.found


def test_a_calibration_of_another_model_is_told(flux):
    found = checkpoint.calibration(calibration_path("shapes-pixart"), flux)
    assert found.problem and "made for another model" in found.found and "fastcache-xdit calibrate" in found.advice


def test_files_that_are_not_whole_are_told(tmp_path):
    broken = tmp_path / "broken.safetensors"
    shutil.copy(calibration_path("shapes-pixart"), broken)
    broken.write_bytes(broken.read_bytes()[:-1])
    found = checkpoint.calibrated([calibration_path("shapes-pixart"), broken, tmp_path / "none"], SHIPPED)
    assert [each.problem for each in found] == [True, True], "what is fine is not listed beside what is not"
    assert "truncated" in found[0].found and "no such calibration file" in found[1].found
