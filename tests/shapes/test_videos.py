"""Clips: captions and their inverse, drawing, held-out prompts, and the checker of videos."""

import random
from dataclasses import replace

import numpy as np
import pytest

from shapes import wan
from shapes.shapes import Shape
from shapes.video_checker import check_clip
from shapes.videos import (
    FRAMES,
    MOTIONS,
    Clip,
    clip_caption,
    clip_prompts,
    draw_clips,
    is_held_out_clip,
    parse_clip,
    sample_any_clip,
    sample_clip,
)

CLIP = Clip(Shape("red", "circle", "small"), "left", "dark")


def to_pixels(clips: list[Clip]) -> list[np.ndarray]:
    """uint8 videos (9, 128, 128, 3) of clips."""
    return list(((draw_clips(clips) + 1) * 127.5).round().byte().movedim(1, -1).numpy())


def wrong(video: np.ndarray) -> set[str]:
    """Names of the attributes that the checker finds wrong in a video for the caption of CLIP."""
    return {name for name, right in check_clip(video, clip_caption(CLIP)).attributes.items() if not right}


def test_captions_read_as_written_in_the_model_card():
    assert clip_caption(CLIP) == "a small red circle moving left on a dark background"
    assert clip_caption(Clip(Shape("orange", "square"), "up", "light")).startswith("an orange square moving up on")


def test_parse_inverts_caption():
    rng = random.Random(1)
    clips = [sample_any_clip(rng) for _ in range(200)]
    assert all(parse_clip(clip_caption(clip)) == clip for clip in clips)
    assert parse_clip(" A small red circle  moving LEFT on a dark background.") == CLIP


@pytest.mark.parametrize(
    "prompt",
    [
        "a red circle on a dark background",
        "a red circle moving on a dark background",
        "a red circle moving sideways on a dark background",
        "a red circle left of a blue square moving up on a dark background",
        "a mauve circle moving up on a dark background",
    ],
)
def test_parse_refuses_what_it_does_not_understand(prompt):
    with pytest.raises(ValueError, match="not understood"):
        parse_clip(prompt)


def test_prompts_are_seeded_never_training_captions_and_repeat_as_late_as_possible():
    assert clip_prompts(9, 7) == clip_prompts(9, 7) != clip_prompts(9, 8)
    assert all(is_held_out_clip(parse_clip(text)) for text in clip_prompts(64, 0))
    assert len(set(clip_prompts(20, 3))) == 20
    rng = random.Random(0)
    assert not any(is_held_out_clip(sample_clip(rng)) for _ in range(500))


def test_drawn_clips_are_right_in_everything():
    rng = random.Random(11)
    clips = [sample_any_clip(rng) for _ in range(40)]
    videos = to_pixels(clips)
    assert videos[0].shape == (FRAMES, 128, 128, 3)
    scores = [check_clip(video, clip_caption(clip)) for video, clip in zip(videos, clips, strict=True)]
    assert np.mean([score.accuracy for score in scores]) >= 0.99


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (CLIP, set()),
        (replace(CLIP, shape=replace(CLIP.shape, colour="blue")), {"colour"}),
        (replace(CLIP, shape=replace(CLIP.shape, kind="square", radius=11.0)), {"kind"}),
        (replace(CLIP, background="light"), {"background"}),
        *((replace(CLIP, motion=motion), {"motion"}) for motion in MOTIONS if motion != "left"),
        (replace(CLIP, travel=4.0), {"motion"}),
    ],
)
def test_a_single_difference_is_the_only_thing_wrong(drawn, expected):
    small = replace(drawn, shape=replace(drawn.shape, radius=11.0))
    assert wrong(to_pixels([small])[0]) == expected


def test_one_bad_frame_is_forgiven_and_two_are_not():
    video = to_pixels([replace(CLIP, shape=replace(CLIP.shape, radius=11.0))])[0]
    video[4] = 24
    assert wrong(video) == set()
    video[5] = 24
    assert wrong(video) == {"colour", "kind", "size", "number"}


def test_the_tokenizer_knows_every_word_of_a_clip():
    tokenizer, rng = wan.tokenizer(), random.Random(4)
    for text in [clip_caption(sample_any_clip(rng)) for _ in range(100)]:
        ids = tokenizer(text).input_ids
        assert len(ids) == len(text.split()) + 1 <= tokenizer.model_max_length
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
