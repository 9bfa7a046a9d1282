"""`models` tells what was tried, of all classes or of one."""

import json

import pytest

from fastcache_xdit.cli.main import main
from fastcache_xdit.models.tried import all_tried


@pytest.fixture
def told(capsys):
    def tell(*argv):
        assert main(["models", *argv]) == 0
        return capsys.readouterr().out

    return tell


def test_every_class_has_its_line(told):
    lines = told().splitlines()
    cached = [name for name, row in all_tried().items() if not row.why_not]
    assert len(cached) >= 60
    for name, row in all_tried().items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.split()[1] == ("no" if row.why_not else "yes")
    assert f"{len(cached)} of {len(all_tried())} classes are cached" in lines[-2]


def test_one_class_in_detail(told):
    lines = told("HunyuanVideoTransformer3DModel")
    assert "HunyuanVideoPipeline" in lines and "single_transformer_blocks: image and another stream" in lines
    assert "refiner_blocks: its streams do not depend on the latents" in lines
    assert "not cached: " in told("TransformerTemporalModel")


def test_json_is_the_same(told):
    found = json.loads(told("--json"))
    assert found["classes"].keys() == all_tried().keys() and "diffusers" in found["versions"]
    assert json.loads(told("--json", "WanTransformer3DModel"))["classes"].keys() == {"WanTransformer3DModel"}


def test_a_misspelt_class_is_told_what_is_like_it(capsys):
    assert main(["models", "Flux2Transformer2D"]) == 2
    assert "was not tried; did you mean Flux2Transformer2DModel" in capsys.readouterr().err
    for part in ("flux", "Flux"):
        assert main(["models", part]) == 2
        assert "FluxTransformer2DModel" in capsys.readouterr().err
    assert main(["models", "MyOwnThing"]) == 2
    assert "enable it and see" in capsys.readouterr().err
