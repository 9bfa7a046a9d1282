"""Scenes: captions and their inverse, drawing, held-out prompts."""

import random

import pytest
import torch

from shapes.sampling import is_held_out, place, prompts, sample_any_scene, sample_scene
from shapes.shapes import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    RELATIONS,
    Scene,
    Shape,
    caption,
    draw,
    draw_batch,
    parse,
)


def test_captions_read_as_written_in_the_model_card() -> None:
    two = Scene((Shape("red", "circle"), Shape("blue", "square", "small")), "dark", "left of")
    one = Scene((Shape("green", "triangle", "small"),), "light")
    assert caption(two) == "a red circle left of a small blue square on a dark background"
    assert caption(one) == "a small green triangle on a light background"
    assert caption(Scene((Shape("orange", "square"),), "dark")).startswith("an orange square")


def test_parse_inverts_caption() -> None:
    rng = random.Random(1)
    scenes = [sample_any_scene(rng) for _ in range(500)]
    assert all(parse(caption(scene)) == scene for scene in scenes)
    seen = {word for scene in scenes for word in caption(scene).split()}
    assert seen >= {*COLOURS, *KINDS, *BACKGROUNDS, *(word for r in RELATIONS for word in r.split())}


def test_parse_is_lenient_about_case_and_spaces_only() -> None:
    assert parse("  A Red  circle on a dark background. ") == Scene((Shape("red", "circle"),), "dark")


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red circle",
        "a mauve circle on a dark background",
        "a red hexagon on a dark background",
        "a red circle beside a blue square on a dark background",
        "a red circle left of on a dark background",
        "a red circle on a dark background with stars",
    ],
)
def test_parse_refuses_what_it_does_not_understand(prompt: str) -> None:
    with pytest.raises(ValueError, match="not understood"):
        parse(prompt)


def test_scene_needs_a_relation_exactly_for_two_objects() -> None:
    shape = Shape("red", "circle")
    for objects, relation in [((shape,), "above"), ((shape, shape), None), ((), None)]:
        with pytest.raises(ValueError, match="scene has"):
            Scene(objects, "dark", relation)


def test_draw_paints_background_and_objects() -> None:
    rng = random.Random(2)
    scene = place(Scene((Shape("red", "circle"), Shape("blue", "square", "small")), "dark", "left of"), rng)
    image = draw(scene)
    assert image.shape == (3, 128, 128) and image.dtype == torch.float32
    levels = ((image + 1) * 127.5).round()
    assert tuple(levels[:, 0, 0].int().tolist()) == BACKGROUNDS["dark"]
    for shape in scene.objects:
        x, y = (int(v) for v in shape.centre)
        assert tuple(levels[:, y, x].int().tolist()) == COLOURS[shape.colour]
        assert (x < 64) == (shape is scene.objects[0])


def test_a_batch_draws_what_single_calls_draw() -> None:
    rng = random.Random(3)
    scenes = [sample_any_scene(rng) for _ in range(24)]
    assert torch.equal(draw_batch(scenes), torch.stack([draw(scene) for scene in scenes]))


def test_edges_are_anti_aliased() -> None:
    image = draw(Scene((Shape("red", "circle"),), "dark"))
    assert len(image[0].unique()) > 10


def test_prompts_are_seeded_and_never_training_captions() -> None:
    assert prompts(20, 7) == prompts(20, 7) != prompts(20, 8)
    assert all(is_held_out(parse(text)) for text in prompts(100, 0))
    assert len(set(prompts(200, 1))) == 200
    rng = random.Random(0)
    assert not any(is_held_out(sample_scene(rng)) for _ in range(500))


def test_more_prompts_than_are_held_out_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 500"):
        prompts(501, 0)
