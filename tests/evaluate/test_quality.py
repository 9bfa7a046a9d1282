"""Image metrics against hand-computed values."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from fastcache_xdit.clips import Clip
from fastcache_xdit.evaluate import quality
from shapes.shapes import draw, parse
from shapes.videos import draw_clips, parse_clip


def flat(value, size=32):
    return Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8))


def test_psnr_of_a_constant_difference():
    cached, uncached = quality.to_tensor([flat(100), flat(60)]), quality.to_tensor([flat(110), flat(60)])
    each = quality.psnr_db(cached, uncached)
    assert each[0] == pytest.approx(20 * math.log10(255 / 10))
    assert each[1] == quality.IDENTICAL_DB
    assert quality.mean_and_min(each) == {"mean": pytest.approx((each[0] + 100) / 2), "min": each[0]}


def test_a_clip_is_compared_as_a_whole_and_frame_by_frame():
    cached, uncached = (Clip(tuple(map(flat, values)), 8) for values in ((100, 60), (110, 60)))
    alike = quality.likeness(cached, uncached)
    assert alike.psnr_db == pytest.approx(20 * math.log10(255 / math.sqrt(10**2 / 2)))
    assert alike.frames_psnr_db == [pytest.approx(20 * math.log10(255 / 10)), quality.IDENTICAL_DB]
    assert alike.frames_ssim[0] < alike.frames_ssim[1] and alike.ssim == sum(alike.frames_ssim) / 2
    image = quality.likeness(flat(100), flat(110))
    assert [image.psnr_db] == image.frames_psnr_db


def test_ssim_is_one_for_equal_images_and_low_for_noise():
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert quality.ssim(noise, noise) == pytest.approx([1.0, 1.0])
    assert max(quality.ssim(noise, noise.flip(0))) < 0.2


def test_prompts_outside_the_language_are_left_out():
    prompt = "a red circle on a dark background"
    pixels = (draw(parse(prompt)) + 1) * 127.5
    image = Image.fromarray(pixels.permute(1, 2, 0).round().to(torch.uint8).numpy())
    assert quality.shapes_accuracy([image, image], [prompt, "a cat on a mat"]) == 1.0
    assert quality.shapes_accuracy([image], ["a cat on a mat"]) is None
    assert quality.shapes_accuracy([flat(20)], [prompt]) < 0.5


def test_videos_are_checked_frame_by_frame():
    prompt = "a red circle moving left on a dark background"
    drawn = draw_clips([parse_clip(prompt), parse_clip(prompt.replace("left", "up"))])
    right, wrong = (
        Image.fromarray(((clip + 1) * 127.5).permute(2, 1, 3, 0).flatten(1, 2).round().byte().numpy()) for clip in drawn
    )
    assert quality.shapes_accuracy([right], [prompt]) == 1.0
    places = range(0, right.width, right.height)
    clip = Clip(tuple(right.crop((place, 0, place + right.height, right.height)) for place in places), 8)
    assert quality.shapes_accuracy([clip], [prompt]) == 1.0
    assert quality.shapes_accuracy([wrong], [prompt]) == pytest.approx(5 / 6)
