"""The checker: right on drawn images, and able to say what is wrong."""

import random
from dataclasses import replace

import numpy as np
import pytest

from shapes.checker import check, find_shapes
from shapes.sampling import place, sample_any_scene
from shapes.shapes import Scene, Shape, caption, draw_batch

FIRST, SECOND = Shape("red", "circle"), Shape("blue", "square", "small")
SCENE = Scene((FIRST, SECOND), "dark", "left of")


def to_pixels(scenes: list[Scene]) -> list[np.ndarray]:
    """uint8 images (128, 128, 3) of scenes."""
    return list(((draw_batch(scenes) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())


def wrong(scene: Scene, prompt: str) -> set[str]:
    """Names of the attributes that the checker finds wrong in a drawing of ``scene``."""
    image = to_pixels([place(scene, random.Random(0))])[0]
    return {name for name, right in check(image, prompt).attributes.items() if not right}


def accuracy(images: list[np.ndarray], scenes: list[Scene]) -> float:
    return np.mean([check(image, caption(scene)).accuracy for image, scene in zip(images, scenes, strict=True)])


def test_drawn_images_are_right_in_everything() -> None:
    rng = random.Random(11)
    scenes = [sample_any_scene(rng) for _ in range(300)]
    assert accuracy(to_pixels(scenes), scenes) >= 0.99


def test_jpeg_like_noise_and_blur_do_not_matter() -> None:
    rng, noise = random.Random(12), np.random.default_rng(0)
    scenes = [sample_any_scene(rng) for _ in range(100)]
    images = [np.clip(image + noise.normal(0, 8, image.shape), 0, 255).astype(np.uint8) for image in to_pixels(scenes)]
    assert accuracy(images, scenes) >= 0.97


def test_nothing_is_wrong_with_the_scene_itself() -> None:
    assert wrong(SCENE, caption(SCENE)) == set()


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (replace(SCENE, objects=(Shape("green", "circle"), SECOND)), {"colour 1"}),
        (replace(SCENE, objects=(FIRST, Shape("blue", "triangle", "small"))), {"kind 2"}),
        (replace(SCENE, objects=(Shape("red", "circle", "small"), SECOND)), {"size 1"}),
        (replace(SCENE, background="light"), {"background"}),
        (replace(SCENE, relation="right of"), {"relation"}),
        (replace(SCENE, relation="above"), {"relation"}),
    ],
)
def test_a_single_difference_is_the_only_thing_wrong(drawn: Scene, expected: set[str]) -> None:
    assert wrong(drawn, caption(SCENE)) == expected


def test_a_missing_object_loses_its_attributes() -> None:
    missing = {"colour 2", "kind 2", "size 2", "relation", "number"}
    assert wrong(Scene((FIRST,), "dark"), caption(SCENE)) == missing


def test_an_object_too_many_is_noticed() -> None:
    assert wrong(SCENE, "a red circle on a dark background") == {"number"}


def test_swapped_colours_are_two_errors() -> None:
    swapped = Scene((Shape("blue", "circle"), Shape("red", "square", "small")), "dark", "left of")
    assert wrong(swapped, caption(SCENE)) == {"colour 1", "colour 2"}


def test_noise_and_blank_images_score_low() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert check(noise, caption(SCENE)).accuracy < 0.3
    assert check(np.zeros_like(noise), caption(SCENE)).accuracy < 0.3


def test_blurred_blobs_have_no_kind() -> None:
    image = np.full((128, 128, 3), 24, dtype=np.uint8)
    image[60:68, 20:108] = (220, 35, 35)
    assert find_shapes(image)[0][0].kind == "?"


@pytest.mark.parametrize("image", [np.zeros((128, 128), np.uint8), np.zeros((128, 128, 3), np.float32)])
def test_images_of_another_format_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 image"):
        check(image, caption(SCENE))
