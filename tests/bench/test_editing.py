"""Local edits keep everything outside their box as noisy as the running step, and in the end as it was."""

from __future__ import annotations

import torch
from diffusers import DPMSolverMultistepScheduler

from fastcache_xdit.bench.editing import LocalEdit, box


def edit(steps=4):
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(steps)
    known, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return LocalEdit(scheduler, known, noise)


def test_a_box_is_centred():
    assert box(torch.empty(1, 1, 8, 16), 0.5) == (slice(2, 6), slice(4, 12))


def test_outside_the_box_the_known_latents_run_along():
    editing, latents = edit(), torch.full((2, 4, 8, 8), 7.0)
    for step, timestep in enumerate(editing.scheduler.timesteps):
        editing(step, timestep, latents)
        assert (latents[..., 2:6, 2:6] == 7.0).all(), "inside, the pipeline goes on with its own"
        last = step == len(editing.scheduler.timesteps) - 1
        following = None if last else editing.scheduler.timesteps[step + 1 : step + 2]
        expected = editing.known if last else editing.scheduler.add_noise(editing.known, editing.noise, following)
        torch.testing.assert_close(latents[..., :2, :], expected[..., :2, :], rtol=0, atol=0)
    assert torch.equal(latents[..., :, 6:], editing.known[..., :, 6:])
